//! A real kubectl against the listener, over TLS with a token. No controllers run: pods stay Pending.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use schemas::{Kind, ObjectKey};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use super::fixture::Api;
use super::kubectl_programs::{found, oldest_and_newest};
use super::listener::Served;
use crate::api::{PlainHttp, admin_kubeconfig, create_token};

/// A call of kubectl on a busy machine.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
      - name: web
        image: web:1
        ports:
        - containerPort: 8080
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  selector: {app: web}
  ports:
  - port: 80
    targetPort: 8080
";

pub(super) struct Kubectl {
    pub(super) program: PathBuf,
    pub(super) home: tempfile::TempDir,
}

impl Kubectl {
    pub(super) fn new(program: &Path, config: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("config"), config).unwrap();
        Self {
            program: program.to_owned(),
            home,
        }
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("HOME", self.home.path())
            .env("KUBECONFIG", self.home.path().join("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub(super) async fn output(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // It may refuse its arguments without reading.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        tokio::time::timeout(DEADLINE, child.wait_with_output())
            .await
            .expect("kubectl hangs")
            .unwrap()
    }

    /// Runs it; it must succeed. Returns what it printed.
    pub(super) async fn run(&self, arguments: &[&str], input: &str) -> String {
        let output = self.output(arguments, input).await;
        let (text, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(
            output.status.success(),
            "{} {arguments:?}: {text}{errors}",
            self.program.display()
        );
        text.into_owned()
    }

    pub(super) async fn ok(&self, line: &str) -> String {
        let words = words(line);
        self.run(&words.iter().map(String::as_str).collect::<Vec<_>>(), "")
            .await
    }

    /// Runs it. Returns its exit code and what it printed on stdout and stderr.
    pub(super) async fn ran(&self, line: &str, input: &str) -> (Option<i32>, String, String) {
        let words = words(line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = self.output(&words, input).await;
        let [text, errors] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code(), text, errors)
    }

    /// Runs it; it must fail. Returns what it complained about.
    pub(super) async fn fails(&self, line: &str) -> String {
        let output = self
            .output(&line.split_whitespace().collect::<Vec<_>>(), "")
            .await;
        assert!(
            !output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

/// The words of a line; quotes keep spaces in one.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut inside) = (vec![String::new()], false);
    for char in line.chars() {
        match char {
            '\'' => inside = !inside,
            ' ' if !inside => words.push(String::new()),
            _ => words.last_mut().unwrap().push(char),
        }
    }
    words
}

/// An API behind a listener, for the kubectls that were found.
pub(super) struct Session {
    pub(super) api: Api,
    served: Served,
    secret: String,
    programs: Vec<PathBuf>,
}

impl Session {
    pub(super) async fn start() -> Option<Self> {
        Self::over(Api::named("n1", true).await).await
    }

    /// None, and says so, where there is no kubectl. The API may want a token.
    pub(super) async fn over(api: Api) -> Option<Self> {
        let programs = found();
        if programs.is_empty() {
            assert!(std::env::var_os("CI").is_none(), "CI must have kubectl");
            eprintln!("skipped: there is no kubectl in PATH");
            return None;
        }
        let (object, secret) = create_token("admin", None);
        let author = api.state.author("test", "");
        api.state.store.create(object, author).await.unwrap();
        let served = Served::start(&api, PlainHttp::Off).await;
        Some(Self {
            api,
            served,
            secret,
            programs,
        })
    }

    fn with(&self, program: &Path, secret: &str) -> Kubectl {
        let server = format!("https://{}", self.served.address);
        let config = admin_kubeconfig(&server, &self.served.certificate_pem, secret);
        Kubectl::new(program, &config)
    }

    /// Every kubectl that was found.
    pub(super) fn all(&self) -> Vec<Kubectl> {
        self.programs
            .iter()
            .map(|program| self.with(program, &self.secret))
            .collect()
    }

    /// The oldest and the newest, for what would take long with all.
    pub(super) fn oldest_and_newest(&self) -> Vec<Kubectl> {
        oldest_and_newest(&self.programs)
            .into_iter()
            .map(|program| self.with(program, &self.secret))
            .collect()
    }

    pub(super) fn newest(&self) -> Kubectl {
        self.with(&self.programs[self.programs.len() - 1], &self.secret)
    }

    /// The newest, with a token that nobody has.
    pub(super) fn stranger(&self) -> Kubectl {
        self.with(&self.programs[self.programs.len() - 1], "stranger")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everyday_kubectl_works() {
    let Some(session) = Session::start().await else {
        return;
    };
    for kubectl in session.all() {
        everyday(&session.api, &kubectl).await;
        kept(&kubectl).await;
    }
}

#[track_caller]
pub(super) fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

async fn everyday(api: &Api, kubectl: &Kubectl) {
    contains(
        &kubectl.ok("api-resources").await,
        &["deployments", "deploy", "apps/v1", "Ingress"],
    );
    contains(
        &kubectl.ok("version").await,
        &["Server Version: ", "v1.33.0+podman-swarm"],
    );

    // apply, on the client's side and on the server's.
    contains(
        &kubectl.run(&["apply", "-f", "-"], WEB).await,
        &["deployment.apps/web created", "service/web created"],
    );
    contains(
        &kubectl.run(&["apply", "-f", "-"], WEB).await,
        &["deployment.apps/web unchanged"],
    );
    let changed = WEB
        .replace("web:1", "web:2")
        .replace("        ports:\n        - containerPort: 8080\n", "");
    contains(&kubectl.run(&["diff", "-f", "-"], WEB).await, &[]);
    contains(
        &kubectl.run(&["apply", "-f", "-"], &changed).await,
        &["deployment.apps/web configured"],
    );
    let spec = "{.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].ports}";
    let shown = kubectl
        .run(
            &["get", "deployment", "web", "-o", &format!("jsonpath={spec}")],
            "",
        )
        .await;
    assert_eq!(shown, "web:2 ");
    let other = WEB
        .replace("name: web", "name: api")
        .replace("app: web", "app: api");
    let applied = kubectl.run(&["apply", "--server-side", "-f", "-"], &other).await;
    contains(&applied, &["deployment.apps/api serverside-applied"]);

    // Tables and other forms.
    let table = kubectl.ok("get deploy").await;
    contains(
        &table,
        &["NAME   READY   UP-TO-DATE   AVAILABLE   AGE", "web    0/2"],
    );
    contains(
        &kubectl.ok("get deploy,svc -o wide").await,
        &["CONTAINERS", "service/web", "80/TCP"],
    );
    contains(
        &kubectl.ok("get deploy web -o yaml").await,
        &["kind: Deployment", "maxSurge: 25%"],
    );
    contains(
        &kubectl.ok("get all -A --show-labels").await,
        &["deployment.apps/web"],
    );
    contains(&kubectl.ok("describe ns default").await, &["Status:", "Active"]);
    contains(&kubectl.ok("get ns").await, &["default", "kube-system", "Active"]);
    contains(&kubectl.ok("get pods").await, &[]);
    contains(
        &kubectl.ok("describe deploy web").await,
        &["Selector:", "app=web", "RollingUpdateStrategy"],
    );
    contains(
        &kubectl.ok("describe svc web").await,
        &["TargetPort:", "8080/TCP"],
    );

    // Edits.
    contains(&kubectl.ok("scale deploy web --replicas=4").await, &["scaled"]);
    contains(
        &kubectl
            .ok("scale deploy web --current-replicas=4 --replicas=3")
            .await,
        &["scaled"],
    );
    contains(&kubectl.ok("label deploy web tier=front").await, &["labeled"]);
    contains(&kubectl.ok("annotate deploy web note=x").await, &["annotate"]);
    contains(
        &kubectl.ok("set image deploy/web web=web:3").await,
        &["image updated"],
    );
    let patch = [
        "patch",
        "deploy",
        "web",
        "--type=json",
        "-p",
        r#"[{"op":"remove","path":"/metadata/labels/tier"}]"#,
    ];
    contains(&kubectl.run(&patch, "").await, &["patched"]);
    contains(&kubectl.ok("rollout restart deploy/web").await, &["restarted"]);
    let object: Value = serde_json::from_str(&kubectl.ok("get deploy web -o json").await).unwrap();
    assert_eq!(
        (&object["spec"]["replicas"], object["metadata"].get("labels")),
        (&3.into(), None)
    );
    let replaced = object.to_string().replace("web:3", "web:4");
    contains(
        &kubectl.run(&["replace", "-f", "-"], &replaced).await,
        &["replaced"],
    );
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    let dry = kubectl
        .run(&["create", "--dry-run=server", "-f", "-"], namespace)
        .await;
    contains(&dry, &["namespace/shop created (server dry run)"]);

    watches(kubectl).await;

    // What goes wrong, in Kubernetes' words.
    contains(
        &kubectl.fails("get deploy none").await,
        &["deployments.apps \"none\" not found"],
    );
    contains(
        &kubectl.fails("get widgets").await,
        &["doesn't have a resource type \"widgets\""],
    );
    let output = kubectl.output(&["create", "-f", "-"], WEB).await;
    contains(
        &String::from_utf8_lossy(&output.stderr),
        &["deployments.apps \"web\" already exists"],
    );
    contains(
        &kubectl.fails("scale deploy web --replicas=-1").await,
        &["replicas"],
    );
    contains(&kubectl.fails("delete ns default").await, &["forbidden"]);
    let wrong = WEB
        .replace("targetPort: 8080", "targetPort: 8080\n    colour: red")
        .replace("name: web", "name: wrong");
    let output = kubectl.output(&["apply", "-f", "-"], &wrong).await;
    contains(
        &String::from_utf8_lossy(&output.stderr),
        &["unknown field \"spec.ports[0].colour\""],
    );
    assert!(!output.status.success(), "kubectl asks for strict validation");

    contains(
        &kubectl.run(&["delete", "-f", "-"], &other).await,
        &["deployment.apps \"api\" deleted"],
    );
    contains(
        &kubectl.ok("delete deploy,svc --all").await,
        &["deployment.apps \"web\" deleted"],
    );
    contains(
        &kubectl.ok("delete pods --all --wait=true").await,
        &["pod \"watched\" deleted"],
    );
    for kind in [Kind::Deployment, Kind::Service, Kind::Pod] {
        let left: Vec<ObjectKey> = api
            .state
            .store
            .list(kind, None)
            .items
            .into_iter()
            .map(|view| view.key)
            .collect();
        assert_eq!(left, [], "{kind}");
    }
}

/// `get -w` and `wait`.
async fn watches(kubectl: &Kubectl) {
    let mut watch = kubectl.command(&["get", "pods", "-w"]).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let waits = kubectl
        .command(&["wait", "--for=delete", "pod/none", "--timeout=30s"])
        .output();
    contains(
        &kubectl.ok("run watched --image=x:1").await,
        &["pod/watched created"],
    );
    let mut seen = Vec::new();
    while !seen.iter().any(|line: &String| line.starts_with("watched")) {
        let line = tokio::time::timeout(DEADLINE, lines.next_line()).await;
        seen.push(
            line.unwrap_or_else(|_| panic!("no line in time after {seen:?}"))
                .unwrap()
                .expect("kubectl ended"),
        );
    }
    contains(&seen.join("\n"), &["READY", "0/1", "Pending"]);
    watch.kill().await.unwrap();
    assert!(waits.await.unwrap().status.success());
}

/// Makes objects of kinds that are kept, as people do, and looks at them.
async fn kept(kubectl: &Kubectl) {
    // kubectl 1.32 and later send these in protobuf.
    for (line, made) in [
        (
            "namespace shop --dry-run=server",
            "namespace/shop created (server dry run)",
        ),
        (
            "deployment cart --image=cart:1 --replicas=0 --port=80",
            "deployment.apps/cart created",
        ),
        ("service clusterip cart --tcp=80:8080", "service/cart created"),
        (
            "ingress cart --rule=cart.example/*=cart:80",
            "ingress.networking.k8s.io/cart created",
        ),
        (
            "configmap settings --from-literal=a=b",
            "configmap/settings created",
        ),
        (
            "secret generic login --from-literal=password=hunter2",
            "secret/login created",
        ),
        ("serviceaccount robot", "serviceaccount/robot created"),
        (
            "priorityclass low --dry-run=server",
            "priorityclass.scheduling.k8s.io/low created (server dry run)",
        ),
        (
            "priorityclass high --value=5",
            "priorityclass.scheduling.k8s.io/high created",
        ),
        (
            "poddisruptionbudget web --min-available=1 --selector=app=web",
            "poddisruptionbudget.policy/web created",
        ),
        (
            "job once --image=localhost/x:1 -- /bin/true",
            "job.batch/once created",
        ),
        (
            "cronjob nightly --image=localhost/x:1 --schedule=@daily",
            "cronjob.batch/nightly created",
        ),
        ("job again --from=cronjob/nightly", "job.batch/again created"),
    ] {
        contains(&kubectl.ok(&format!("create {line}")).await, &[made]);
    }
    let refused = kubectl.fails("create configmap settings").await;
    contains(&refused, &["configmaps \"settings\" already exists"]);
    let refused = kubectl.fails("create configmap Not-A-Name").await;
    contains(&refused, &["metadata.name: Invalid value: \"Not-A-Name\""]);
    let shown = kubectl
        .ok("get deployment cart -o jsonpath={.spec.replicas}/{.spec.template.spec.containers[0].ports[0].containerPort}")
        .await;
    assert_eq!(shown, "0/80");
    kubectl.ok("delete deploy/cart svc/cart ing/cart").await;
    assert_eq!(kubectl.ok("auth can-i create pods").await, "yes\n");
    assert_eq!(
        kubectl.ok("auth can-i delete nodes --all-namespaces").await,
        "yes\n"
    );
    contains(&kubectl.ok("auth can-i --list").await, &["*.*", "[*]"]);
    // 1.27 asks for a version that Kubernetes 1.33 does not have any more.
    if !kubectl.program.ends_with("kubectl.1.27") {
        contains(&kubectl.ok("auth whoami").await, &["Username", "admin"]);
    }
    contains(
        &kubectl.ok("get --raw /readyz?verbose").await,
        &["readyz check passed"],
    );
    let expected = ["settings", "Opaque", "robot"];
    contains(&kubectl.ok("get cm,secret,sa").await, &expected);
    contains(
        &kubectl.ok("get pc high").await,
        &["VALUE", "GLOBAL-DEFAULT", "high", "5", "false"],
    );
    contains(
        &kubectl.ok("get jobs once").await,
        &["STATUS", "COMPLETIONS", "DURATION", "once", "Running", "0/1"],
    );
    contains(
        &kubectl.ok("get cj").await,
        &["TIMEZONE", "nightly", "@daily", "<none>", "False"],
    );
    let own = kubectl.ok("get job -l job-name=once -o name").await;
    assert_eq!(own, "job.batch/once\n");
    contains(
        &kubectl.ok("describe job once").await,
        &["batch.kubernetes.io/controller-uid="],
    );
    kubectl.ok("delete job/once job/again cronjob/nightly").await;
    contains(
        &kubectl.ok("get pdb web").await,
        &["MIN AVAILABLE", "MAX UNAVAILABLE", "web", "1", "N/A"],
    );
    let password = "get secret login -o jsonpath={.data.password}";
    assert_eq!(kubectl.ok(password).await, "aHVudGVyMg==");
    let described = kubectl.ok("describe secret login").await;
    contains(&described, &["password:  7 bytes", "Opaque"]);
    contains(&kubectl.ok("describe configmap settings").await, &["a:\n----\nb"]);
    let frozen = r#"{"immutable": true}"#;
    kubectl
        .run(&["patch", "configmap", "settings", "-p", frozen], "")
        .await;
    let refused = kubectl
        .fails(r#"patch configmap settings -p {"data":{"a":"c"}}"#)
        .await;
    contains(
        &refused,
        &["data: Forbidden: field is immutable when `immutable` is set"],
    );
    kubectl
        .ok("delete cm/settings secret/login sa/robot pc/high pdb/web")
        .await;
}
