//! What the newest kubectl says, and how it ends, when something is refused: the words that Kubernetes has for it.

use super::kubectl::{Kubectl, Session, contains};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
      - name: web
        image: web:1
";

/// One call that fails: what is typed, what comes in, and all that must be in what it says.
struct Refusal {
    line: &'static str,
    input: String,
    said: &'static [&'static str],
}

fn refusal(line: &'static str, input: impl Into<String>, said: &'static [&'static str]) -> Refusal {
    Refusal {
        line,
        input: input.into(),
        said,
    }
}

/// Runs each; all that is not as it should be is told at once.
async fn check(kubectl: &Kubectl, refusals: Vec<Refusal>) {
    let mut wrong = Vec::new();
    for Refusal { line, input, said } in refusals {
        let (code, text, errors) = kubectl.ran(line, &input).await;
        if code != Some(1) || !said.iter().all(|part| errors.contains(part)) {
            wrong.push(format!(
                "{line}: expected {said:#?}, ended with {code:?}: {text}{errors}"
            ));
        }
    }
    let program = kubectl.program.display();
    assert!(wrong.is_empty(), "{program}\n{}", wrong.join("\n"));
}

async fn with_newest(refused: impl AsyncFn(&Kubectl)) {
    let Some(session) = Session::start().await else {
        return;
    };
    let kubectl = session.newest();
    kubectl.run(&["apply", "-f", "-"], WEB).await;
    refused(&kubectl).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there() {
    with_newest(not_there).await;
}

async fn not_there(kubectl: &Kubectl) {
    let none = &["Error from server (NotFound): deployments.apps \"none\" not found"];
    let elsewhere =
        &["Error from server (NotFound): error when creating \"STDIN\": namespaces \"nowhere\" not found"];
    let moved = WEB.replace("{name: web}", "{name: web, namespace: nowhere}");
    check(
        kubectl,
        vec![
            refusal("get deploy none", "", none),
            refusal("get deploy none -o yaml", "", none),
            refusal("describe deploy none", "", none),
            refusal("delete deploy none", "", none),
            refusal("label deploy none a=b", "", none),
            refusal("annotate deploy none a=b", "", none),
            refusal("scale deploy none --replicas=1", "", &["error: no objects passed to scale"]),
            refusal("set image deploy/none a=b", "", none),
            refusal("set env deploy/none A=b", "", none),
            refusal("patch deploy none -p {}", "", none),
            refusal("edit deploy none", "", none),
            refusal("rollout status deploy/none", "", none),
            refusal("rollout restart deploy/none", "", none),
            refusal("wait deploy/none --for=condition=Available --timeout=1s", "", none),
            refusal("expose deploy none --port=80", "", none),
            refusal("logs none", "", &["(NotFound): pods \"none\" not found"]),
            refusal("cordon none", "", &["nodes \"none\" not found"]),
            refusal("get secret none", "", &["Error from server (NotFound): secrets \"none\" not found"]),
            refusal("get ns none", "", &["Error from server (NotFound): namespaces \"none\" not found"]),
            refusal("create -f -", moved.clone(), elsewhere),
            refusal("apply -f -", moved, elsewhere),
            refusal("create configmap a -n nowhere", "", &["namespaces \"nowhere\" not found"]),
            refusal(
                "replace -f -",
                WEB.replace("{name: web}", "{name: none}"),
                &["Error from server (NotFound): error when replacing \"STDIN\": deployments.apps \"none\" not found"],
            ),
            refusal("get --raw /apis/example.com/v1", "", &["Error from server (NotFound)"]),
        ],
    )
    .await;
    // Lists of nothing are no failure.
    assert_eq!(kubectl.ok("get deploy none --ignore-not-found").await, "");
    assert_eq!(kubectl.ok("delete deploy none --ignore-not-found").await, "");
    let (code, _, said) = kubectl.ran("get pods -n nowhere", "").await;
    assert_eq!(
        (code, said.as_str()),
        (Some(0), "No resources found in nowhere namespace.\n")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_there_already() {
    with_newest(there_already).await;
}

async fn there_already(kubectl: &Kubectl) {
    kubectl.ok("create configmap settings").await;
    kubectl.ok("run single --image=x:1").await;
    check(
        kubectl,
        vec![
            refusal(
                "create -f -",
                WEB,
                &["Error from server (AlreadyExists): error when creating \"STDIN\": deployments.apps \"web\" already exists"],
            ),
            refusal(
                "create deployment web --image=x:1",
                "",
                &["error: failed to create deployment: deployments.apps \"web\" already exists"],
            ),
            refusal(
                "create configmap settings",
                "",
                &["error: failed to create configmap: configmaps \"settings\" already exists"],
            ),
            refusal(
                "create namespace default",
                "",
                &["Error from server (AlreadyExists): namespaces \"default\" already exists"],
            ),
            refusal(
                "run single --image=x:1",
                "",
                &["Error from server (AlreadyExists): pods \"single\" already exists"],
            ),
        ],
    )
    .await;
    kubectl.ok("delete cm/settings pod/single").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_and_fields_that_are_none() {
    with_newest(kinds_and_fields).await;
}

async fn kinds_and_fields(kubectl: &Kubectl) {
    let colour = WEB.replace("  replicas: 1", "  colour: red");
    check(
        kubectl,
        vec![
            refusal("get widgets", "", &["error: the server doesn't have a resource type \"widgets\""]),
            refusal(
                "apply -f -",
                "---\n{apiVersion: v1, kind: Widget, metadata: {name: w}}",
                &[
                    "resource mapping not found for name: \"w\" namespace: \"\" from \"STDIN\": no matches for kind \"Widget\" in version \"v1\"",
                    "ensure CRDs are installed first",
                ],
            ),
            refusal(
                "apply -f -",
                WEB.replace("apps/v1", "extensions/v1beta1"),
                &["no matches for kind \"Deployment\" in version \"extensions/v1beta1\""],
            ),
            refusal(
                "create -f -",
                colour.clone(),
                &["Error from server (BadRequest): error when creating \"STDIN\": Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \"spec.colour\""],
            ),
            refusal(
                "apply -f -",
                colour,
                &["The Deployment \"web\" is invalid: patch: Invalid value: strict decoding error: unknown field \"spec.colour\""],
            ),
            refusal(
                "create -f -",
                WEB.replace("replicas: 1", "replicas: many").replace("name: web}", "name: other}"),
                &["Error from server (BadRequest): error when creating \"STDIN\": Deployment in version \"v1\" cannot be handled as a Deployment: spec.replicas: Invalid value: \"many\": must be of type integer"],
            ),
            refusal(
                "replace -f -",
                WEB.replace("replicas: 1", "replicas: many"),
                &["Error from server (BadRequest): error when replacing \"STDIN\": Deployment in version \"v1\" cannot be handled as a Deployment: spec.replicas: "],
            ),
            refusal(
                "apply --server-side -f -",
                WEB.replace("replicas: 1", "replicas: many"),
                &["Error from server (BadRequest): failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.replicas: Invalid value: \"many\": must be of type integer"],
            ),
            refusal(
                "patch deploy web -p {\"spec\":{\"replicas\":\"many\"}}",
                "",
                &["The Deployment \"web\" is invalid: spec.replicas: Invalid value: \"many\": must be of type integer"],
            ),
        ],
    )
    .await;
    let (code, _, said) = kubectl
        .ran(
            "create --dry-run=server --validate=warn -f -",
            &WEB.replace("  replicas: 1", "  colour: red")
                .replace("{name: web}", "{name: other}"),
        )
        .await;
    assert_eq!(code, Some(0), "{said}");
    contains(&said, &["Warning: unknown field \"spec.colour\"\n"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_are_wrong() {
    with_newest(values).await;
}

async fn values(kubectl: &Kubectl) {
    let other = WEB.replace("{name: web}", "{name: other}");
    check(
        kubectl,
        vec![
            refusal(
                "create -f -",
                other.replace("replicas: 1", "replicas: -1"),
                &["The Deployment \"other\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
            ),
            refusal(
                "create -f -",
                other.replace("      labels: {app: web}", "      labels: {app: another}"),
                &[
                    "The Deployment \"other\" is invalid: spec.template.metadata.labels: Invalid value: ",
                    "`selector` does not match template `labels`",
                ],
            ),
            refusal(
                "create -f -",
                other.replace("        image: web:1\n", ""),
                &["The Deployment \"other\" is invalid: spec.template.spec.containers[0].image: Required value"],
            ),
            // Every field that is wrong is named.
            refusal(
                "create -f -",
                other
                    .replace("      - name: web", "      - name: Not_A_Name")
                    .replace("image: web:1", "image: web:1\n        ports: [{containerPort: 0}]"),
                &[
                    "The Deployment \"other\" is invalid: ",
                    "* spec.template.spec.containers[0].name: Invalid value: \"Not_A_Name\": a lowercase RFC 1123 label must consist of",
                    "* spec.template.spec.containers[0].ports[0].containerPort: ",
                ],
            ),
            refusal(
                "create configmap Not_A_Name",
                "",
                &["metadata.name: Invalid value: \"Not_A_Name\": a lowercase RFC 1123 subdomain must consist of"],
            ),
            refusal(
                "create -f -",
                "---\n{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 99999}]}}",
                &[
                    "The Service \"s\" is invalid: ",
                    "spec.ports[0].port: Invalid value: 99999: must be between 1 and 65535, inclusive",
                ],
            ),
            refusal(
                "create -f -",
                "---\n{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {type: Sideways, ports: [{port: 1}]}}",
                &["The Service \"s\" is invalid: spec.type: Unsupported value: \"Sideways\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\""],
            ),
            refusal("label deploy web a=b=c", "", &["error: "]),
            refusal(
                "get cm --field-selector=data.a=1",
                "",
                &["Error from server (BadRequest): Unable to find \"/v1, Resource=configmaps\" that match label selector \"\", field selector \"data.a=1\": field label not supported: data.a"],
            ),
            refusal("get pods -l 'a in ('", "", &["unable to parse requirement"]),
            refusal(
                "scale deploy web --replicas=5 --current-replicas=3",
                "",
                &["error: Expected replicas to be 3, was 1"],
            ),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stays_as_it_was_made() {
    with_newest(what_may_not_change).await;
}

async fn what_may_not_change(kubectl: &Kubectl) {
    kubectl.ok("create secret generic login").await;
    kubectl.ok("create configmap frozen --from-literal=a=b").await;
    kubectl.ok("patch cm frozen -p {\"immutable\":true}").await;
    kubectl.ok("run single --image=x:1").await;
    check(
        kubectl,
        vec![
            refusal(
                "apply -f -",
                WEB.replace("app: web", "app: other"),
                &["The Deployment \"web\" is invalid: spec.selector: Invalid value: ", "field is immutable"],
            ),
            refusal(
                "patch secret login -p {\"type\":\"other\"}",
                "",
                &["The Secret \"login\" is invalid: type: Invalid value: \"other\": field is immutable"],
            ),
            refusal(
                "patch cm frozen -p {\"data\":{\"a\":\"c\"}}",
                "",
                &["The ConfigMap \"frozen\" is invalid: data: Forbidden: field is immutable when `immutable` is set"],
            ),
            refusal(
                "patch cm frozen -p {\"immutable\":false}",
                "",
                &["The ConfigMap \"frozen\" is invalid: immutable: Forbidden: field is immutable when `immutable` is set"],
            ),
            refusal(
                "patch pod single -p {\"spec\":{\"restartPolicy\":\"Never\"}}",
                "",
                &["The Pod \"single\" is invalid: spec: Forbidden: pod updates may not change fields other than"],
            ),
            refusal(
                "patch deploy web --type=json -p [{\"op\":\"replace\",\"path\":\"/metadata/name\",\"value\":\"x\"}]",
                "",
                &["Error from server (BadRequest): the name of the object (x) does not match the name on the URL (web)"],
            ),
        ],
    )
    .await;
    kubectl.ok("delete secret/login cm/frozen pod/single").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_forbidden() {
    with_newest(what_may_not_be).await;
}

async fn what_may_not_be(kubectl: &Kubectl) {
    check(
        kubectl,
        vec![
            refusal(
                "delete ns default",
                "",
                &["Error from server (Forbidden): namespaces \"default\" is forbidden: this namespace may not be deleted"],
            ),
            refusal(
                "delete ns kube-system",
                "",
                &["Error from server (Forbidden): namespaces \"kube-system\" is forbidden: this namespace may not be deleted"],
            ),
        ],
    )
    .await;
    // No controller runs here: a namespace that is deleted stays as it is, and takes nothing new.
    kubectl.ok("create ns ending").await;
    kubectl.ok("delete ns ending --wait=false").await;
    let late = refusal(
        "create configmap late -n ending",
        "",
        &[
            "configmaps \"late\" is forbidden: unable to create new content in namespace ending because it is being terminated",
        ],
    );
    check(kubectl, vec![late]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_too_late() {
    with_newest(conflicts).await;
}

async fn conflicts(kubectl: &Kubectl) {
    let old = kubectl.ok("get deploy web -o yaml").await;
    kubectl.ok("annotate deploy web by=another").await;
    let settings = |value: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: ConfigMap, metadata: {{name: settings}}, data: {{a: {value}}}}}"
        )
    };
    let apply = ["apply", "--server-side", "-f", "-"];
    kubectl.run(&apply, &settings("one")).await;
    check(
        kubectl,
        vec![
            refusal(
                "replace -f -",
                old.replace("image: web:1", "image: web:2"),
                &["Error from server (Conflict): error when replacing \"STDIN\": Operation cannot be fulfilled on deployments.apps \"web\": the object has been modified; please apply your changes to the latest version and try again"],
            ),
            refusal(
                "scale deploy web --replicas=2 --resource-version=1",
                "",
                &["error: Expected resource version to be 1, was "],
            ),
            refusal(
                "label deploy web a=b --resource-version=1",
                "",
                &["Error from server (Conflict): Operation cannot be fulfilled on deployments.apps \"web\""],
            ),
            refusal(
                "apply --server-side --field-manager=other -f -",
                settings("two"),
                &[
                    "error: Apply failed with 1 conflict: conflict with \"kubectl\": .data.a",
                    "--force-conflicts",
                ],
            ),
            refusal(
                "annotate deploy web by=me",
                "",
                &["error: --overwrite is false but found the following declared annotation(s): 'by' already has a value (another)"],
            ),
            refusal(
                "label deploy web app=web by=me -l app=web",
                "",
                &["error: "],
            ),
        ],
    )
    .await;
    kubectl
        .run(
            &[&apply[..], &["--field-manager=other", "--force-conflicts"]].concat(),
            &settings("two"),
        )
        .await;
    assert_eq!(kubectl.ok("get cm settings -o jsonpath={.data.a}").await, "two");
    kubectl.ok("delete cm settings").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large() {
    with_newest(too_large).await;
}

async fn too_large(kubectl: &Kubectl) {
    let large = |bytes: usize| {
        let text = "x".repeat(bytes);
        format!("---\n{{apiVersion: v1, kind: ConfigMap, metadata: {{name: large}}, data: {{a: {text}}}}}")
    };
    check(
        kubectl,
        vec![
            refusal(
                "create -f -",
                large(4 << 20),
                &["Error from server (RequestEntityTooLarge): error when creating \"STDIN\": Request entity too large: limit is "],
            ),
            refusal(
                "create -f -",
                large(1 << 20),
                &["Error from server (RequestEntityTooLarge): error when creating \"STDIN\": Request entity too large: limit is "],
            ),
            // What a client-side apply writes down of itself is an annotation.
            refusal(
                "apply -f -",
                large(300 << 10),
                &["The ConfigMap \"large\" is invalid: metadata.annotations: Too long: may not be more than 262144 bytes"],
            ),
        ],
    )
    .await;
    kubectl
        .run(&["apply", "--server-side", "-f", "-"], &large(300 << 10))
        .await;
    kubectl.ok("delete cm large").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_malformed() {
    with_newest(malformed).await;
}

async fn malformed(kubectl: &Kubectl) {
    check(
        kubectl,
        vec![
            refusal(
                "apply -f -",
                "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n data: b\n",
                &["error: error parsing STDIN: error converting YAML to JSON: yaml: line 4: did not find expected key"],
            ),
            refusal(
                "apply -f -",
                "{\"apiVersion\": \"v1\",",
                &["error: error parsing STDIN: "],
            ),
            refusal("create -f -", "apiVersion: v1\nmetadata: {name: a}\n", &["kind"]),
            refusal(
                "create -f -",
                "kind: ConfigMap\nmetadata: {name: a}\n",
                &["apiVersion"],
            ),
            refusal(
                "create -f -",
                "---\n{apiVersion: v1, kind: ConfigMap, metadata: {}}",
                &["The ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required"],
            ),
            refusal("apply -f -", "", &["error: no objects passed to apply"]),
            refusal(
                "patch deploy web -p {",
                "",
                &["Error from server (BadRequest): "],
            ),
            refusal(
                "patch deploy web --type=json -p {}",
                "",
                &["Error from server (BadRequest): "],
            ),
            refusal(
                "apply -f /nonexistent.yaml",
                "",
                &["error: the path \"/nonexistent.yaml\" does not exist"],
            ),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_has_one_source() {
    with_newest(one_source).await;
}

/// kubectl says which members of a volume stay (`$retainKeys`); a patch without that leaves two sources, which are refused, as
/// in Kubernetes.
async fn one_source(kubectl: &Kubectl) {
    let volume = |source: &str| {
        let volumes = format!("      volumes: [{{name: data, {source}}}]\n      containers:");
        WEB.replace("      containers:", &volumes)
    };
    let source = "get deploy web -o jsonpath='{range .spec.template.spec.volumes[*]}{.emptyDir.medium}{.configMap.name}{.secret.secretName}{end}'";
    let apply = ["apply", "-f", "-"];
    kubectl.run(&apply, &volume("emptyDir: {medium: Memory}")).await;
    assert_eq!(kubectl.ok(source).await, "Memory");
    kubectl.run(&apply, &volume("configMap: {name: settings}")).await;
    assert_eq!(kubectl.ok(source).await, "settings");
    check(
        kubectl,
        vec![refusal(
            "patch deploy web --type=strategic -p {\"spec\":{\"template\":{\"spec\":{\"volumes\":[{\"name\":\"data\",\"secret\":{\"secretName\":\"s\"}}]}}}}",
            "",
            &["The Deployment \"web\" is invalid: spec.template.spec.volumes[0].secret: Forbidden: may not specify more than 1 volume type"],
        )],
    )
    .await;
    let whole = "{\"$retainKeys\":[\"name\",\"secret\"],\"name\":\"data\",\"secret\":{\"secretName\":\"s\"}}";
    let patch = format!("{{\"spec\":{{\"template\":{{\"spec\":{{\"volumes\":[{whole}]}}}}}}}}");
    kubectl
        .ok(&format!("patch deploy web --type=strategic -p {patch}"))
        .await;
    assert_eq!(kubectl.ok(source).await, "s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_none() {
    let Some(session) = Session::start().await else {
        return;
    };
    let stranger = session.stranger();
    let (code, _, said) = stranger.ran("get pods", "").await;
    assert_eq!(code, Some(1));
    contains(&said, &["error: You must be logged in to the server"]);
}
