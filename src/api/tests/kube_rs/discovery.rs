//! What an operator finds of the API without knowing it: groups, kinds, verbs, and objects without a type.

use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::core::discovery::verbs;
use kube::discovery::{self, Discovery, Scope};
use kube::{Api, ResourceExt};
use schemas::KINDS;
use serde_json::json;

use super::super::fixture::deployment;
use super::{Swarm, typed};

#[tokio::test]
async fn every_kind_is_discovered_with_its_verbs() {
    let swarm = Swarm::start().await;
    let found = [
        Discovery::new(swarm.client.clone()).run().await.unwrap(),
        Discovery::new(swarm.client.clone())
            .run_aggregated()
            .await
            .unwrap(),
    ];
    for discovery in found {
        for row in KINDS.iter().filter(|row| row.served) {
            let wanted = GroupVersionKind::gvk(row.group, row.version, row.name);
            let Some((resource, capabilities)) = discovery.resolve_gvk(&wanted) else {
                panic!("{wanted:?} was not discovered");
            };
            assert_eq!(resource.plural, row.plural);
            for verb in [verbs::GET, verbs::LIST, verbs::WATCH] {
                assert!(capabilities.supports_operation(verb), "{verb} of {wanted:?}");
            }
        }
        let web = GroupVersionKind::gvk("apps", "v1", "Deployment");
        let (_, capabilities) = discovery.resolve_gvk(&web).unwrap();
        assert_eq!(capabilities.scope, Scope::Namespaced);
        let subresources = capabilities
            .subresources
            .iter()
            .map(|(resource, _)| resource.plural.as_str());
        let mut subresources: Vec<_> = subresources.collect();
        subresources.sort_unstable();
        assert_eq!(subresources, ["scale", "status"]);
        // Everything that can be listed can be, by what was discovered alone.
        for group in discovery.groups() {
            for (resource, capabilities) in group.recommended_resources() {
                if capabilities.supports_operation(verbs::LIST) {
                    let all: Api<DynamicObject> = Api::all_with(swarm.client.clone(), &resource);
                    all.list(&ListParams::default())
                        .await
                        .unwrap_or_else(|error| panic!("{resource:?}: {error}"));
                }
            }
        }
    }
}

#[tokio::test]
async fn objects_without_a_type_are_written_and_read() {
    let swarm = Swarm::start().await;
    let web = GroupVersionKind::gvk("apps", "v1", "Deployment");
    let (resource, _) = discovery::pinned_kind(&swarm.client, &web).await.unwrap();
    let all: Api<DynamicObject> = Api::default_namespaced_with(swarm.client.clone(), &resource);
    let object: DynamicObject = typed(deployment("web", 2));
    let made = all.create(&PostParams::default(), &object).await.unwrap();
    assert_eq!(made.types.as_ref().unwrap().kind, "Deployment");
    assert_eq!(made.data["spec"]["replicas"], 2);
    let applied = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"x": "y"}}});
    let applied = all
        .patch("web", &PatchParams::apply("operator"), &Patch::Apply(&applied))
        .await
        .unwrap();
    assert_eq!(applied.labels()["x"], "y");
    assert_eq!(applied.data["spec"]["replicas"], 2);
    let listed = all.list(&ListParams::default().labels("x=y")).await.unwrap();
    assert_eq!(listed.items.len(), 1);
}
