//! What kubectl makes of the OpenAPI documents: explanations, validation, patches. Every kubectl that is found, as in `kubectl.rs`.

use axum::body::Body;
use http::{Request, header};
use serde_json::Value;

use super::fixture::Api;
use super::kubectl::{Kubectl, Session, contains};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 0
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
      - name: web
        image: web:1
        env:
        - {name: A, value: a}
        ports:
        - containerPort: 8080
      volumes:
      - name: scratch
        emptyDir: {}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_explains_validates_and_patches_by_our_documents() {
    let Some(session) = Session::start().await else {
        return;
    };
    explains_every_kind(&session.newest()).await;
    for kubectl in session.all() {
        explains(&kubectl).await;
        explains_by_version_2(&kubectl).await;
        validates(&kubectl).await;
        validates_by_itself(&kubectl).await;
        patches(&kubectl).await;
    }
}

async fn explains_every_kind(kubectl: &Kubectl) {
    for row in schemas::KINDS.iter().filter(|row| row.served) {
        let shown = kubectl.ok(&format!("explain {}", row.resource())).await;
        contains(&shown, &[&format!("KIND:       {}", row.name), "VERSION:    v1"]);
    }
    // Older ones do not show it.
    let restart = kubectl.ok("explain pod.spec.restartPolicy").await;
    contains(&restart, &["ENUM:\n    Always\n    Never\n    OnFailure\n"]);
}

async fn explains(kubectl: &Kubectl) {
    let containers = kubectl
        .ok("explain deployment.spec.template.spec.containers")
        .await;
    contains(
        &containers,
        &[
            "GROUP:      apps",
            "KIND:       Deployment",
            "FIELD: containers <[]Container>",
            "List of containers belonging to the pod.",
            "image\t<string>",
            "name\t<string> -required-",
            "livenessProbe\t<Probe>",
        ],
    );
    let pods = kubectl.ok("explain pods --api-version=v1").await;
    contains(
        &pods,
        &["KIND:       Pod", "spec\t<PodSpec>", "Pod is a collection"],
    );
    // Nobody has to write it.
    assert!(!pods.contains("-required-"), "{pods}");
    let all = kubectl.ok("explain deploy --recursive").await;
    contains(
        &all,
        &[
            "containerPort\t<integer> -required-",
            "matchLabels\t<map[string]string>",
        ],
    );
    for (kind, field) in [
        ("podmetrics", "containers\t<[]ContainerMetrics>"),
        ("nodemetrics", "usage\t<map[string]Quantity>"),
    ] {
        let explained = kubectl.ok(&format!("explain {kind}")).await;
        contains(
            &explained,
            &["GROUP:      metrics.k8s.io", "VERSION:    v1beta1", field],
        );
    }
    let port = "explain service.spec.ports.targetPort";
    contains(&kubectl.ok(port).await, &["IntOrString"]);
    let limits = "explain pod.spec.containers.resources.limits";
    contains(&kubectl.ok(limits).await, &["limits <map[string]Quantity>"]);
    let wrong = kubectl.fails("explain deployment.spec.colour").await;
    contains(&wrong, &["field \"colour\" does not exist"]);
    let wrong = kubectl.fails("explain widgets").await;
    contains(&wrong, &["doesn't have a resource type \"widgets\""]);
}

async fn explains_by_version_2(kubectl: &Kubectl) {
    let form = "--output=plaintext-openapiv2";
    let shown = kubectl
        .ok(&format!("explain deployment.spec.template.spec {form}"))
        .await;
    contains(
        &shown,
        &[
            "KIND:     Deployment",
            "VERSION:  apps/v1",
            "RESOURCE: spec <Object>",
            "containers\t<[]Object> -required-",
        ],
    );
    let all = kubectl.ok(&format!("explain pods --recursive {form}")).await;
    contains(&all, &["nodeSelector\t<map[string]string>"]);
    let wrong = kubectl.fails(&format!("explain pod.spec.colour {form}")).await;
    contains(&wrong, &["field \"colour\" does not exist"]);
}

async fn validates(kubectl: &Kubectl) {
    let wrong = WEB.replace("image: web:1", "image: web:1\n        colour: red");
    for action in [&["apply"][..], &["create"], &["apply", "--server-side"]] {
        let arguments = [action, &["--validate=strict", "-f", "-"]].concat();
        let output = kubectl.output(&arguments, &wrong).await;
        assert!(!output.status.success(), "{arguments:?}");
        let errors = String::from_utf8_lossy(&output.stderr);
        contains(&errors, &["spec.template.spec.containers[0].colour"]);
    }
    let output = kubectl
        .output(
            &["apply", "--validate=warn", "--dry-run=server", "-f", "-"],
            &wrong,
        )
        .await;
    contains(
        &String::from_utf8_lossy(&output.stderr),
        &["unknown field \"spec.template.spec.containers[0].colour\""],
    );
}

/// Of a `List`, kubectl does not expect that the server validates it.
async fn validates_by_itself(kubectl: &Kubectl) {
    let list = |manifest: &str| {
        let lines = manifest.lines().skip(1);
        let lines: String = lines.map(|line| format!("  {line}\n")).collect();
        format!("apiVersion: v1\nkind: List\nitems:\n-{}", &lines[1..])
    };
    let arguments = ["apply", "--validate=strict", "--dry-run=client", "-f", "-"];
    kubectl.run(&arguments, &list(WEB)).await;
    for (right, wrong, complaint) in [
        (
            "image: web:1",
            "image: web:1\n        colour: red",
            "unknown field \"colour\" in io.k8s.api.core.v1.Container",
        ),
        (
            "replicas: 0",
            "replicas: many",
            "invalid type for io.k8s.api.apps.v1.DeploymentSpec.replicas: got \"string\", expected \"integer\"",
        ),
        (
            "- name: web\n        image",
            "- image",
            "missing required field \"name\" in io.k8s.api.core.v1.Container",
        ),
    ] {
        let output = kubectl
            .output(&arguments, &list(&WEB.replace(right, wrong)))
            .await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{complaint}");
        contains(&errors, &["error validating data", complaint]);
    }
}

/// What others added to lists with keys stays when a client applies again, and what was taken out goes.
async fn patches(kubectl: &Kubectl) {
    kubectl.run(&["apply", "--validate=strict", "-f", "-"], WEB).await;
    let others = r#"{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"side:1"},
        {"name":"web","env":[{"name":"B","value":"b"}]}]}}}}"#;
    kubectl.run(&["patch", "deploy", "web", "-p", others], "").await;
    let changed = WEB
        .replace("web:1", "web:2")
        .replace("        ports:\n        - containerPort: 8080\n", "")
        .replace("emptyDir: {}", "hostPath: {path: /srv}")
        .replace("  replicas: 0\n", "  replicas: 0\n  strategy: {type: Recreate}\n");
    let output = kubectl.output(&["apply", "-v=8", "-f", "-"], &changed).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(!errors.contains("error calculating patch"), "{errors}");
    contains(
        &errors,
        &[
            "strategic-merge-patch+json",
            "/openapi/",
            "$setElementOrder/containers",
            "$retainKeys",
        ],
    );
    let shown = kubectl.ok("get deploy web -o json").await;
    let object: Value = serde_json::from_str(&shown).unwrap();
    let spec = &object["spec"]["template"]["spec"];
    let containers = spec["containers"].as_array().unwrap();
    let named = |name: &str| {
        containers
            .iter()
            .find(|container| container["name"] == name)
            .unwrap()
    };
    assert_eq!(containers.len(), 2, "{spec}");
    assert_eq!(named("side")["image"], "side:1");
    assert_eq!(named("web")["image"], "web:2");
    assert_eq!(named("web")["env"].as_array().unwrap().len(), 2, "{spec}");
    assert_eq!(named("web").get("ports"), None);
    assert_eq!(spec["volumes"][0]["hostPath"]["path"], "/srv");
    assert_eq!(spec["volumes"][0].get("emptyDir"), None);
    assert_eq!(
        object["spec"]["strategy"],
        serde_json::json!({"type": "Recreate"})
    );
    kubectl.ok("delete deploy web").await;
}

#[tokio::test]
async fn documents_are_kept_by_their_hash() {
    let api = Api::open().await;
    let index = api.get("/openapi/v3").await.expect(200).json();
    let place = index["paths"]["apis/apps/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap();
    let (path, hash) = place.split_once("?hash=").unwrap();
    assert_eq!((path, hash.len()), ("/openapi/v3/apis/apps/v1", 64));

    let answer = api.get(place).await.expect(200);
    let tag = format!("\"{hash}\"");
    let value = |answer: &super::fixture::Answer, name: http::HeaderName| {
        answer.headers[name].to_str().unwrap().to_owned()
    };
    assert_eq!(value(&answer, header::ETAG), tag);
    assert_eq!(value(&answer, header::VARY), "Accept, Accept-Encoding");
    let forever = value(&answer, header::CACHE_CONTROL);
    assert!(forever.contains("public, immutable"), "{forever}");
    // What no hash names may change.
    let plain = api.get(path).await.expect(200);
    assert_eq!(value(&plain, header::CACHE_CONTROL), "no-cache, private");
    assert_eq!(plain.json(), answer.json());

    let outdated = api.get(&format!("{path}?hash=abc")).await.expect(301);
    assert_eq!(value(&outdated, header::LOCATION), place);
    for known in [tag.as_str(), "*", "\"x\", W/\"y\"", "\"other\""] {
        let known_here = known == tag || known == "*";
        let code = if known_here { 304 } else { 200 };
        let headers = [("if-none-match", known)];
        api.call("GET", path, &headers, Body::empty()).await.expect(code);
    }
    let protobuf_alone = [(
        "accept",
        "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
    )];
    api.call("GET", path, &protobuf_alone, Body::empty())
        .await
        .expect(406);
    api.get("/openapi/v3/apis/none.example.com/v1").await.expect(404);

    let old = api.get("/openapi/v2").await.expect(200);
    assert_eq!(old.json()["swagger"], "2.0");
    let tag = value(&old, header::ETAG);
    let same = [("if-none-match", tag.as_str())];
    api.call("GET", "/openapi/v2", &same, Body::empty())
        .await
        .expect(304);
    // It is another form, of which the client has none.
    let asked = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let request = Request::get("/openapi/v2")
        .header(header::ACCEPT, asked)
        .header(header::IF_NONE_MATCH, tag)
        .body(Body::empty());
    let protobuf = api.send(request.unwrap()).await;
    assert_eq!(protobuf.status(), 200);
    assert_eq!(
        protobuf.headers()[header::CONTENT_TYPE],
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
    );
}
