//! What is read of bodies: fields that are none, and keys that are there twice.

use serde_json::json;

use super::fixture::{Answer, Api, deployment};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const WEB: &str = "/apis/apps/v1/namespaces/default/deployments/web";

#[tokio::test]
async fn an_object_need_not_repeat_the_kind_that_its_path_says() {
    let api = Api::open().await;
    let path = "/api/v1/namespaces/default/configmaps";
    for (media, text) in [
        ("application/yaml", "metadata: {name: yaml}\ndata: {a: b}\n"),
        (
            "application/json",
            r#"{"metadata": {"name": "json"}, "data": {"a": "b"}}"#,
        ),
    ] {
        let headers = [("content-type", media)];
        let made = api.call("POST", path, &headers, text).await.expect(201).json();
        assert_eq!(
            (&made["apiVersion"], &made["kind"]),
            (&json!("v1"), &json!("ConfigMap"))
        );
        let one = format!("{path}/{}", made["metadata"]["name"].as_str().unwrap());
        api.call("PUT", &one, &headers, text).await.expect(200);
    }
    let other = "kind: Secret\nmetadata: {name: other}\n";
    let refused = api
        .call("POST", path, &[("content-type", "application/yaml")], other)
        .await;
    let said = "the kind in the data (Secret) does not match the expected kind (ConfigMap)";
    assert!(refused.expect(400).text.contains(said));
}

#[tokio::test]
async fn unknown_fields_are_kept_and_told_of_however_they_come() {
    let api = Api::open().await;
    let unknown = [
        "x-common",
        "metadata.colour",
        "spec.colour",
        "spec.template.spec.containers[0].colour",
    ];
    let named = |name: &str| {
        let mut object = deployment(name, 1);
        object["x-common"] = json!({"a": [1]});
        object["metadata"]["colour"] = json!("red");
        object["spec"]["colour"] = json!({"b": {"c": "d"}});
        object["spec"]["template"]["spec"]["containers"][0]["colour"] = json!(1);
        object
    };
    let path = |name: &str| format!("{DEPLOYMENTS}/{name}");
    let warned = |answer: Answer| {
        for path in unknown {
            let text = format!("unknown field \"{path}\"");
            let warnings = answer.warnings();
            assert!(
                warnings
                    .iter()
                    .any(|warning| warning.contains(&text.replace('"', "\\\""))),
                "{text}: {warnings:?}"
            );
        }
    };
    warned(api.post(DEPLOYMENTS, named("created")).await.expect(201));
    warned(api.post("/api/v1/manifests", named("bundled")).await.expect(200));
    for name in ["updated", "merge", "strategic-merge"] {
        api.post(DEPLOYMENTS, deployment(name, 1)).await.expect(201);
    }
    warned(api.put(&path("updated"), named("updated")).await.expect(200));
    for kind in ["merge", "strategic-merge"] {
        let strict = format!("{}?fieldValidation=Strict", path(kind));
        let refused = api.patch(&strict, kind, named(kind)).await.expect(422).json();
        let message = refused["message"].as_str().unwrap();
        assert!(
            message.contains("patch: Invalid value: strict decoding error: "),
            "{message}"
        );
        warned(api.patch(&path(kind), kind, named(kind)).await.expect(200));
        // What was there before is nothing new, also to who is strict.
        let answer = api.patch(&strict, kind, named(kind)).await.expect(200);
        assert_eq!(answer.warnings(), Vec::<&str>::new());
    }
    let applied = |validation: &str| {
        let query = format!("fieldManager=test&fieldValidation={validation}");
        format!("{}?{query}", path("applied"))
    };
    let refused = api
        .apply(&applied("Strict"), named("applied"))
        .await
        .expect(400)
        .json();
    let message = refused["message"].as_str().unwrap();
    assert!(
        message
            .starts_with("failed to create typed patch object (default/applied; apps/v1, Kind=Deployment): ")
            && message.contains(".spec.colour: field not declared in schema"),
        "{message}"
    );
    warned(api.apply(&applied("Warn"), named("applied")).await.expect(201));
    let silent = api.apply(&applied("Ignore"), named("applied")).await.expect(200);
    assert_eq!(silent.warnings(), Vec::<&str>::new());
    for name in [
        "created",
        "bundled",
        "updated",
        "merge",
        "strategic-merge",
        "applied",
    ] {
        let shown = api.get(&path(name)).await.expect(200).json();
        let sent = named(name);
        for pointer in [
            "/x-common",
            "/metadata/colour",
            "/spec/colour",
            "/spec/template/spec/containers/0/colour",
        ] {
            assert_eq!(shown.pointer(pointer), sent.pointer(pointer), "{name}: {pointer}");
        }
    }
}

#[tokio::test]
async fn of_a_key_that_is_there_twice_the_last_counts() {
    let api = Api::open().await;
    let twice = |name: &str| {
        let text = deployment(name, 1).to_string();
        let twice = text.replacen("\"replicas\":1", "\"replicas\":1,\"replicas\":2", 1);
        assert_ne!(twice, text);
        twice
    };
    let yaml = |name: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata:\n  a: b\n  a: c\n")
    };
    let maps = "/api/v1/namespaces/default/configmaps";
    let json_field = "duplicate field \\\"spec.replicas\\\"";
    let yaml_line = "yaml: unmarshal errors:  line 6: key \\\"a\\\" already set in map";
    let merge = "application/merge-patch+json";
    let strategic = "application/strategic-merge-patch+json";
    let json_patch = r#"[{"op":"add","path":"/spec/replicas","value":5,"value":2}]"#;
    let apply = "application/apply-patch+yaml";
    for (method, path, media, body, code, said) in [
        (
            "POST",
            DEPLOYMENTS,
            "application/json",
            twice("web"),
            400,
            json_field,
        ),
        ("PUT", WEB, "application/json", twice("web"), 400, json_field),
        ("PATCH", WEB, merge, twice("web"), 422, json_field),
        ("PATCH", WEB, strategic, twice("web"), 422, json_field),
        (
            "PATCH",
            WEB,
            "application/json-patch+json",
            json_patch.to_owned(),
            422,
            "json patch duplicate field \\\"[0].value\\\"",
        ),
        ("POST", maps, "application/yaml", yaml("a"), 400, yaml_line),
        ("PATCH", &format!("{maps}/b"), apply, yaml("b"), 400, yaml_line),
    ] {
        let ask = |validation: &str| {
            let path = format!("{path}?fieldManager=test&fieldValidation={validation}");
            let (api, body) = (&api, body.clone());
            async move { api.call(method, &path, &[("content-type", media)], body).await }
        };
        let refused = ask("Strict").await.expect(code);
        let text = refused.text.replace("\\n", "");
        assert!(
            text.contains("strict decoding") && text.contains(said),
            "{method} {media}: {text}"
        );
        let warned = ask("Warn").await;
        let warnings = warned.warnings().join("\n");
        assert!(
            warned.code.is_success() && warnings.contains(said),
            "{method} {media}: {warnings} {}",
            warned.text
        );
    }
    assert_eq!(api.get(WEB).await.json()["spec"]["replicas"], 2);
    for name in ["a", "b"] {
        assert_eq!(api.get(&format!("{maps}/{name}")).await.json()["data"]["a"], "c");
    }
}

#[tokio::test]
async fn a_strict_client_hears_of_duplicate_and_unknown_fields_at_once() {
    let api = Api::open().await;
    api.post(DEPLOYMENTS, deployment("web", 1)).await.expect(201);
    let body = r#"{"spec":{"replicas":1,"replicas":2,"colour":"red"}}"#;
    for media in ["merge-patch", "strategic-merge-patch"] {
        let ask = |validation: &str| {
            let (api, path) = (&api, format!("{WEB}?dryRun=All&fieldValidation={validation}"));
            let media = format!("application/{media}+json");
            async move { api.call("PATCH", &path, &[("content-type", &media)], body).await }
        };
        let refused = ask("Strict").await.expect(422).json();
        let message = refused["message"].as_str().unwrap();
        assert!(
            message.contains(
                "strict decoding error: duplicate field \"spec.replicas\", unknown field \"spec.colour\""
            ),
            "{message}"
        );
        assert_eq!(ask("Warn").await.expect(200).warnings().len(), 2);
        assert_eq!(ask("Ignore").await.expect(200).warnings().len(), 0);
    }
}
