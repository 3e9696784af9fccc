//! The client's words: create, read, list, patch, replace, apply, delete, and what they answer when they are refused.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{
    DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
    VersionMatch,
};
use kube::core::Status;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::super::fixture::{deployment, pod};
use super::{Swarm, client, config_map, refused, typed};

fn names<K: kube::Resource>(items: &[K]) -> Vec<String> {
    items.iter().map(ResourceExt::name_any).collect()
}

fn data(object: &ConfigMap) -> Value {
    json!(object.data)
}

#[tokio::test]
async fn objects_are_made_read_changed_and_removed() {
    let swarm = Swarm::start().await;
    let maps: Api<ConfigMap> = swarm.all();
    let post = PostParams::default();
    let made = maps
        .create(&post, &config_map("a", json!({"x": "y"}), json!({"n": "1"})))
        .await
        .unwrap();
    assert!(made.uid().is_some() && made.resource_version().is_some() && made.creation_timestamp().is_some());
    assert_eq!(maps.get("a").await.unwrap(), made);
    assert_eq!(maps.get_opt("none").await.unwrap(), None);

    let patch = PatchParams::default();
    let merge = Patch::Merge(json!({"data": {"m": "2", "n": null}}));
    assert_eq!(
        data(&maps.patch("a", &patch, &merge).await.unwrap()),
        json!({"m": "2"})
    );
    let operations: Patch<Value> = Patch::Json(typed(json!([
        {"op": "test", "path": "/data/m", "value": "2"},
        {"op": "add", "path": "/data/k", "value": "3"},
    ])));
    let patched = maps.patch("a", &patch, &operations).await.unwrap();
    assert_eq!(data(&patched), json!({"k": "3", "m": "2"}));

    let mut replaced = patched.clone();
    replaced.data = Some([("z".to_owned(), "4".to_owned())].into());
    let replaced = maps.replace("a", &post, &replaced).await.unwrap();
    assert_eq!((data(&replaced), replaced.uid()), (json!({"z": "4"}), made.uid()));
    let mut entry = maps.entry("b").await.unwrap().or_insert(ConfigMap::default);
    entry.get_mut().data = Some([("e".to_owned(), "5".to_owned())].into());
    entry.commit(&post).await.unwrap();
    assert_eq!(data(&maps.get("b").await.unwrap()), json!({"e": "5"}));

    let dry = DeleteParams::default().dry_run();
    maps.delete("a", &dry).await.unwrap();
    let another = DeleteParams::default().preconditions(Preconditions {
        uid: Some("another".to_owned()),
        resource_version: None,
    });
    assert!(refused(maps.delete("a", &another).await).is_conflict());
    let gone = maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(gone.right().unwrap().is_success());
    assert_eq!(maps.get_opt("a").await.unwrap(), None);

    for (name, tier) in [("c", "front"), ("d", "back"), ("e", "front")] {
        let map = config_map(name, json!({"tier": tier}), json!({}));
        maps.create(&post, &map).await.unwrap();
    }
    let front = ListParams::default().labels("tier=front");
    let removed = maps
        .delete_collection(&DeleteParams::default(), &front)
        .await
        .unwrap();
    assert_eq!(names(&removed.left().unwrap().items), ["c", "e"]);
    assert_eq!(
        names(&maps.list(&ListParams::default()).await.unwrap().items),
        ["b", "d"]
    );
}

#[tokio::test]
async fn a_deployment_is_changed_as_its_lists_are_merged() {
    let swarm = Swarm::start().await;
    let deployments: Api<Deployment> = swarm.all();
    let web: Deployment = typed(deployment("web", 2));
    let made = deployments.create(&PostParams::default(), &web).await.unwrap();
    assert_eq!(made.metadata.generation, Some(1));
    let patch = Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": [
        {"name": "web", "env": [{"name": "A", "value": "1"}]},
        {"name": "side", "image": "side:1"},
    ]}}}}));
    let patched = deployments.patch("web", &PatchParams::default(), &patch).await;
    let patched = patched.unwrap();
    let mut containers = patched.spec.unwrap().template.spec.unwrap().containers;
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    let images: Vec<_> = containers
        .iter()
        .map(|container| container.image.as_deref())
        .collect();
    assert_eq!(images, [Some("side:1"), Some("web:1")]);
    assert_eq!(patched.metadata.generation, Some(2));
    let restarted = deployments.restart("web").await.unwrap();
    let annotations = restarted.spec.unwrap().template.metadata.unwrap().annotations;
    assert!(
        annotations
            .unwrap()
            .contains_key("kube.kubernetes.io/restartedAt")
    );
    let orphaned = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Orphan),
        ..DeleteParams::default()
    };
    deployments.delete("web", &orphaned).await.unwrap();
}

#[tokio::test]
async fn a_list_comes_in_pages_of_one_state() {
    let swarm = Swarm::start().await;
    let maps: Api<ConfigMap> = swarm.all();
    for name in ["a", "b", "c", "d", "e"] {
        let map = config_map(name, json!({"letter": name}), json!({}));
        maps.create(&PostParams::default(), &map).await.unwrap();
    }
    let (mut params, mut seen, mut versions) = (ListParams::default().limit(2), Vec::new(), Vec::new());
    loop {
        let page = maps.list(&params).await.unwrap();
        assert!((1..=2).contains(&page.items.len()));
        seen.extend(names(&page.items));
        versions.extend(page.metadata.resource_version);
        maps.delete("e", &DeleteParams::default()).await.ok();
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    assert_eq!(seen, ["a", "b", "c", "d", "e"]);
    versions.dedup();
    assert_eq!(versions.len(), 1, "{versions:?}");

    let chosen = ListParams::default().labels("letter in (a, c)");
    assert_eq!(names(&maps.list(&chosen).await.unwrap().items), ["a", "c"]);
    let named = ListParams::default().fields("metadata.name=b");
    assert_eq!(names(&maps.list(&named).await.unwrap().items), ["b"]);
    let cached = ListParams::default().at("0").matching(VersionMatch::NotOlderThan);
    assert_eq!(maps.list(&cached).await.unwrap().items.len(), 4);
    let metadata = maps.list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(names(&metadata.items), ["a", "b", "c", "d"]);
    let labels = maps.get_metadata("a").await.unwrap();
    assert_eq!(labels.labels()["letter"], "a");
    let everywhere: Api<ConfigMap> = Api::all(swarm.client.clone());
    assert_eq!(everywhere.list(&chosen).await.unwrap().items.len(), 2);
}

#[tokio::test]
async fn errors_have_kubernetes_codes_reasons_and_causes() {
    let swarm = Swarm::start().await;
    let (maps, deployments): (Api<ConfigMap>, Api<Deployment>) = (swarm.all(), swarm.all());
    let post = PostParams::default();
    let seen = |status: &Status| (status.code, status.reason.clone());
    let is = |code: u16, reason: &str| (code, reason.to_owned());

    let status = refused(deployments.get("none").await);
    assert_eq!(seen(&status), is(404, "NotFound"));
    assert_eq!(status.message, "deployments.apps \"none\" not found");
    let details = status.details.as_ref().unwrap();
    assert_eq!((&*details.name, &*details.group), ("none", "apps"));
    assert!(status.is_not_found());

    let map = config_map("a", json!({}), json!({}));
    let old = maps.create(&post, &map).await.unwrap();
    let status = refused(maps.create(&post, &map).await);
    assert_eq!(seen(&status), is(409, "AlreadyExists"));
    assert!(status.is_already_exists());
    let change = Patch::Merge(json!({"data": {"n": "1"}}));
    maps.patch("a", &PatchParams::default(), &change).await.unwrap();
    let status = refused(maps.replace("a", &post, &old).await);
    assert_eq!(seen(&status), is(409, "Conflict"));
    assert!(status.is_conflict());

    let mut wrong = deployment("web", -1);
    wrong["spec"]["template"]["spec"]["containers"][0]["name"] = "Not A Name".into();
    let status = refused(deployments.create(&post, &typed(wrong)).await);
    assert_eq!(seen(&status), is(422, "Invalid"));
    let causes = status.details.unwrap().causes;
    let mut fields: Vec<_> = causes.iter().map(|cause| cause.field.as_str()).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["spec.replicas", "spec.template.spec.containers[0].name"]);
    let frozen = config_map("frozen", json!({}), json!({"n": "1"}));
    let frozen = ConfigMap {
        immutable: Some(true),
        ..frozen
    };
    maps.create(&post, &frozen).await.unwrap();
    let change = Patch::Merge(json!({"data": {"n": "2"}}));
    let status = refused(maps.patch("frozen", &PatchParams::default(), &change).await);
    assert_eq!(seen(&status), is(422, "Invalid"));
    assert_eq!(status.details.unwrap().causes[0].reason, "FieldValueForbidden");
}

#[tokio::test]
async fn strangers_and_what_may_not_be_are_refused() {
    let swarm = Swarm::start().await;
    let stranger = client(&swarm.served, "stranger").await;
    let status = refused(
        Api::<Pod>::default_namespaced(stranger)
            .list(&ListParams::default())
            .await,
    );
    assert_eq!((status.code, &*status.reason), (401, "Unauthorized"));
    let namespaces: Api<Namespace> = Api::all(swarm.client.clone());
    let status = refused(namespaces.delete("default", &DeleteParams::default()).await);
    assert!(status.is_forbidden(), "{status:?}");
    let maps: Api<ConfigMap> = swarm.all();
    let strict = PatchParams::apply("strict").validation_strict();
    let unknown =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "colour": "red"});
    let status = refused(maps.patch("a", &strict, &Patch::Apply(&unknown)).await);
    assert!(
        status.code == 400 && status.message.contains("colour"),
        "{status:?}"
    );
}

#[tokio::test]
async fn fields_belong_to_who_applied_them() {
    let swarm = Swarm::start().await;
    let maps: Api<ConfigMap> = swarm.all();
    let wanted = |data: Value| {
        Patch::Apply(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}),
        )
    };
    let (one, other) = (PatchParams::apply("one"), PatchParams::apply("other"));
    let both = wanted(json!({"a": "1", "b": "1"}));
    let made = maps.patch("a", &one, &both).await.unwrap();
    let again = maps.patch("a", &one, &both).await.unwrap();
    assert_eq!(
        made.resource_version(),
        again.resource_version(),
        "nothing changed"
    );

    let status = refused(maps.patch("a", &other, &wanted(json!({"a": "2"}))).await);
    assert_eq!((status.code, &*status.reason), (409, "Conflict"));
    let cause = &status.details.unwrap().causes[0];
    assert_eq!(
        (&*cause.reason, &*cause.field),
        ("FieldManagerConflict", ".data.a")
    );
    assert!(cause.message.contains("\"one\""), "{cause:?}");
    let (force, two) = (other.force(), wanted(json!({"a": "2"})));
    let tried = maps.patch("a", &force.clone().dry_run(), &two).await;
    assert_eq!(data(&tried.unwrap()), json!({"a": "2", "b": "1"}));
    assert_eq!(data(&maps.get("a").await.unwrap()), json!({"a": "1", "b": "1"}));
    let forced = maps.patch("a", &force, &two).await.unwrap();
    assert_eq!(data(&forced), json!({"a": "2", "b": "1"}));
    // What its only manager names no more goes; what another has taken stays.
    let left = maps.patch("a", &one, &wanted(json!({}))).await.unwrap();
    assert_eq!(data(&left), json!({"a": "2"}));
}

#[tokio::test]
async fn status_and_scale_are_written_apart() {
    let swarm = Swarm::start().await;
    let deployments: Api<Deployment> = swarm.all();
    let web: Deployment = typed(deployment("web", 2));
    deployments.create(&PostParams::default(), &web).await.unwrap();
    let status = json!({"status": {"replicas": 2, "readyReplicas": 1, "observedGeneration": 1}, "spec": {"replicas": 7}});
    let patched = deployments
        .patch_status("web", &PatchParams::default(), &Patch::Merge(&status))
        .await;
    let patched = patched.unwrap();
    let seen = |deployment: &Deployment| {
        let ready = deployment
            .status
            .as_ref()
            .and_then(|status| status.ready_replicas);
        let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
        (replicas, ready)
    };
    assert_eq!(seen(&patched), (Some(2), Some(1)));
    let mut replaced = patched;
    replaced.status.as_mut().unwrap().ready_replicas = Some(2);
    let replaced = deployments
        .replace_status("web", &PostParams::default(), &replaced)
        .await;
    assert_eq!(seen(&replaced.unwrap()), (Some(2), Some(2)));
    let scale = deployments.get_scale("web").await.unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(2));
    assert_eq!(scale.status.unwrap().replicas, 2);
    let five = Patch::Merge(json!({"spec": {"replicas": 5}}));
    let scale = deployments
        .patch_scale("web", &PatchParams::default(), &five)
        .await;
    let mut scale = scale.unwrap();
    assert_eq!(scale.spec.as_ref().unwrap().replicas, Some(5));
    scale.spec.as_mut().unwrap().replicas = Some(0);
    deployments
        .replace_scale("web", &PostParams::default(), &scale)
        .await
        .unwrap();
    assert_eq!(seen(&deployments.get("web").await.unwrap()), (Some(0), Some(2)));
    let negative = Patch::Merge(json!({"spec": {"replicas": -1}}));
    let status = refused(
        deployments
            .patch_scale("web", &PatchParams::default(), &negative)
            .await,
    );
    assert_eq!((status.code, &*status.reason), (422, "Invalid"));
    let applied = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "spec": {"replicas": 3}});
    let applied = deployments
        .patch_scale(
            "web",
            &PatchParams::apply("scaler").force(),
            &Patch::Apply(applied),
        )
        .await;
    assert_eq!(applied.unwrap().spec.unwrap().replicas, Some(3));
}

#[tokio::test]
async fn an_eviction_asks_the_budget() {
    let swarm = Swarm::start().await;
    let (pods, budgets): (Api<Pod>, Api<PodDisruptionBudget>) = (swarm.all(), swarm.all());
    let budget = typed(json!({
        "metadata": {"name": "web"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
    }));
    for pod in [pod("web"), pod("free")] {
        pods.create(&PostParams::default(), &typed(pod)).await.unwrap();
    }
    let ready = Patch::Merge(
        json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}),
    );
    pods.patch_status("web", &PatchParams::default(), &ready)
        .await
        .unwrap();
    budgets.create(&PostParams::default(), &budget).await.unwrap();
    let evict = EvictParams::default();
    assert!(pods.evict("free", &evict).await.unwrap().is_success());
    assert!(refused(pods.evict("free", &evict).await).is_not_found());
}

#[tokio::test]
async fn a_status_is_applied_apart_from_the_rest() {
    let swarm = Swarm::start().await;
    let deployments: Api<Deployment> = swarm.all();
    let manager = PatchParams::apply("operator");
    let status = |status: Value| {
        Patch::Apply(
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 9}, "status": status}),
        )
    };
    let none = deployments
        .patch_status("web", &manager, &status(json!({})))
        .await;
    assert!(refused(none).is_not_found());
    let web = Patch::Apply(deployment("web", 2));
    deployments.patch("web", &manager, &web).await.unwrap();
    let seen = |deployment: Deployment| {
        let status = deployment.status.unwrap_or_default();
        let replicas = deployment.spec.and_then(|spec| spec.replicas);
        (replicas, status.ready_replicas, status.available_replicas)
    };
    let both = status(json!({"readyReplicas": 2, "availableReplicas": 1}));
    let applied = deployments.patch_status("web", &manager, &both).await.unwrap();
    assert_eq!(seen(applied), (Some(2), Some(2), Some(1)));
    // Neither half drops what the other named.
    let applied = deployments.patch("web", &manager, &web).await.unwrap();
    assert_eq!(seen(applied), (Some(2), Some(2), Some(1)));
    let fewer = status(json!({"readyReplicas": 1}));
    let applied = deployments.patch_status("web", &manager, &fewer).await.unwrap();
    assert_eq!(seen(applied), (Some(2), Some(1), None));
    let other = PatchParams::apply("other");
    let another = status(json!({"readyReplicas": 5}));
    let refused = refused(deployments.patch_status("web", &other, &another).await);
    assert!(refused.is_conflict(), "{refused:?}");
    assert!(
        refused
            .message
            .contains("conflict with \"operator\" with subresource \"status\""),
        "{refused:?}"
    );
    let applied = deployments
        .patch_status("web", &other.force(), &another)
        .await
        .unwrap();
    let entries = applied.metadata.managed_fields.clone().unwrap_or_default();
    let owners: Vec<_> = entries
        .iter()
        .map(|entry| {
            (
                entry.manager.as_deref(),
                entry.operation.as_deref(),
                entry.subresource.as_deref(),
            )
        })
        .collect();
    assert_eq!(
        owners,
        [
            (Some("operator"), Some("Apply"), None),
            (Some("other"), Some("Apply"), Some("status")),
        ]
    );
    assert_eq!(seen(applied), (Some(2), Some(5), None));
}
