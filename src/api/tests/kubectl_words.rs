//! The rest of everyday kubectl, word by word: output, effect and exit code. No controllers run; statuses are written here.

use std::fs;
use std::process::Stdio;

use schemas::{Kind, Object, ObjectKey};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::kubectl::{DEADLINE, Kubectl, Session, contains};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {tier: front}
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
";

/// Config maps that are told apart by labels and values.
const SETTINGS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: one, labels: {colour: red, size: s}}
data: {rank: c}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: two, labels: {colour: blue}}
data: {rank: a}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: three, labels: {size: s}}
data: {rank: b}
";

async fn with_each(check: impl AsyncFn(&Kubectl)) {
    let Some(session) = Session::start().await else {
        return;
    };
    let node = ObjectKey::cluster(Kind::Node, "n1");
    session.api.state.store.project(&node, Some(Object::new(&node)));
    for kubectl in session.oldest_and_newest() {
        kubectl.run(&["apply", "-f", "-"], WEB).await;
        check(&kubectl).await;
        kubectl.ok("delete deploy,rs,pod,cm,svc --all").await;
    }
}

/// Runs each line; its output must be just this.
async fn prints(kubectl: &Kubectl, lines: &[(&str, &str)]) {
    let mut wrong = Vec::new();
    for (line, expected) in lines {
        let (code, text, errors) = kubectl.ran(line, "").await;
        if (code, text.as_str()) != (Some(0), *expected) {
            wrong.push(format!(
                "{line}: expected\n{expected}\nended with {code:?}:\n{text}{errors}"
            ));
        }
    }
    let program = kubectl.program.display();
    assert!(wrong.is_empty(), "{program}\n{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_sorts_selects_and_shows_columns() {
    with_each(async |kubectl| {
        kubectl.run(&["apply", "-f", "-"], SETTINGS).await;
        let names = "get cm -o custom-columns=NAME:.metadata.name,RANK:.data.rank";
        prints(
            kubectl,
            &[
                (
                    &format!("{names} --sort-by=.data.rank"),
                    "NAME    RANK\ntwo     a\nthree   b\none     c\n",
                ),
                (
                    &format!("{names} --sort-by={{.metadata.name}} --no-headers"),
                    "one     c\nthree   b\ntwo     a\n",
                ),
                ("get cm -o name -l colour=red", "configmap/one\n"),
                (
                    "get cm -o name -l colour!=red --sort-by=.data.rank",
                    "configmap/two\nconfigmap/three\n",
                ),
                (
                    "get cm -o name -l 'colour in (red, blue)'",
                    "configmap/one\nconfigmap/two\n",
                ),
                (
                    "get cm -o name -l 'colour notin (red)'",
                    "configmap/three\nconfigmap/two\n",
                ),
                ("get cm -o name -l size,!colour", "configmap/three\n"),
                (
                    "get cm -o name --field-selector=metadata.name=two",
                    "configmap/two\n",
                ),
                (
                    "get cm -o name --field-selector=metadata.name!=two",
                    "configmap/one\nconfigmap/three\n",
                ),
                (
                    "get cm -o name --chunk-size=1",
                    "configmap/one\nconfigmap/three\nconfigmap/two\n",
                ),
                ("get cm one two -o name", "configmap/one\nconfigmap/two\n"),
                (
                    "get cm/one deploy/web -o name",
                    "configmap/one\ndeployment.apps/web\n",
                ),
                (
                    "get cm -o jsonpath='{range .items[*]}{.metadata.name}={.data.rank} {end}'",
                    "one=c three=b two=a ",
                ),
                ("get cm one -o go-template={{.data.rank}}", "c"),
                (
                    "get deploy -o jsonpath={.items[?(@.spec.replicas==2)].metadata.name}",
                    "web",
                ),
                ("get cm none --ignore-not-found", ""),
            ],
        )
        .await;
        let table = kubectl
            .ok("get cm --show-labels -l size=s --sort-by=.metadata.name")
            .await;
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|row| row.split_whitespace().collect())
            .collect();
        assert_eq!(rows[0], ["NAME", "DATA", "AGE", "LABELS"]);
        assert_eq!(
            (rows[1][0], rows[1][1], rows[1][3]),
            ("one", "1", "colour=red,size=s")
        );
        assert_eq!((rows[2][0], rows[2][3]), ("three", "size=s"));
        let table = kubectl.ok("get cm one -L colour,size").await;
        contains(&table, &["COLOUR   SIZE", "red      s"]);
        contains(&kubectl.ok("get deploy web -o wide").await, &["web:1", "app=web"]);
        contains(&kubectl.ok("get cm -A").await, &["NAMESPACE", "default     one"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_w_shows_what_comes_changes_and_goes() {
    with_each(async |kubectl| {
        let line = [
            "get",
            "cm",
            "-w",
            "-l",
            "colour",
            "--output-watch-events",
            "--no-headers",
        ];
        let mut watch = kubectl.command(&line).spawn().unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        kubectl.run(&["apply", "-f", "-"], SETTINGS).await;
        kubectl.ok("label cm three colour=green").await;
        kubectl.ok("label cm two colour-").await;
        kubectl.ok("delete cm one").await;
        let mut seen = Vec::new();
        while seen.len() < 5 {
            let line = tokio::time::timeout(DEADLINE, lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("no line in time after {seen:?}"));
            seen.push(line.unwrap().expect("kubectl ended"));
        }
        watch.kill().await.unwrap();
        let words: Vec<Vec<&str>> = seen
            .iter()
            .map(|line| line.split_whitespace().take(2).collect())
            .collect();
        assert_eq!(
            words,
            [
                ["ADDED", "one"],
                ["ADDED", "two"],
                ["ADDED", "three"],
                ["DELETED", "two"],
                ["DELETED", "one"],
            ]
        );
    })
    .await;
}

/// Writes what the controller of deployments would.
async fn roll_out(kubectl: &Kubectl) {
    let generation = kubectl
        .ok("get deploy web -o jsonpath={.metadata.generation}")
        .await;
    let status = format!(
        r#"{{"status":{{"observedGeneration":{generation},"replicas":2,"updatedReplicas":2,"readyReplicas":2,"availableReplicas":2,"conditions":[{{"type":"Available","status":"True"}}]}}}}"#
    );
    let line = [
        "patch",
        "deploy",
        "web",
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ];
    kubectl.run(&line, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_and_rollout_status_end_when_it_is_so() {
    with_each(async |kubectl| {
        let waits = [
            "rollout status deploy/web --timeout=30s",
            "wait deploy/web --for=condition=Available --timeout=30s",
            "wait deploy/web --for=jsonpath={.status.readyReplicas}=2 --timeout=30s",
            "wait deploy --all --for=condition=available=true --timeout=30s",
        ];
        let (outputs, ()) = futures::join!(
            futures::future::join_all(waits.map(|line| kubectl.ok(line))),
            roll_out(kubectl)
        );
        contains(&outputs[0], &["deployment \"web\" successfully rolled out\n"]);
        for output in &outputs[1..] {
            assert_eq!(output, "deployment.apps/web condition met\n");
        }
        let (gone, _) = futures::join!(
            kubectl.ok("wait deploy/web --for=delete --timeout=30s"),
            kubectl.ok("delete deploy web")
        );
        // It may be gone before the wait begins.
        assert!(
            ["", "deployment.apps/web condition met\n"].contains(&gone.as_str()),
            "{gone}"
        );
        kubectl.ok("run single --image=x:1").await;
        let (code, _, said) = kubectl
            .ran("wait pod/single --for=condition=Ready --timeout=1s", "")
            .await;
        assert_eq!(
            (code, said.as_str()),
            (
                Some(1),
                "error: timed out waiting for the condition on pods/single\n"
            )
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollout_pauses_and_resumes() {
    with_each(async |kubectl| {
        prints(
            kubectl,
            &[
                ("rollout pause deploy/web", "deployment.apps/web paused\n"),
                ("get deploy web -o jsonpath={.spec.paused}", "true"),
            ],
        )
        .await;
        for (line, refused) in [
            ("rollout pause deploy/web", "error: deployments.apps \"web\" is already paused\n"),
            ("rollout restart deploy/web", "error: deployments.apps \"web\" can't restart paused deployment (run rollout resume first)\n"),
        ] {
            let (code, _, said) = kubectl.ran(line, "").await;
            assert_eq!((code, said.as_str()), (Some(1), refused), "{line}");
        }
        prints(
            kubectl,
            &[
                ("rollout resume deploy/web", "deployment.apps/web resumed\n"),
                ("get deploy web -o jsonpath={.spec.paused}", ""),
                ("rollout restart deploy -l tier=front", "deployment.apps/web restarted\n"),
            ],
        )
        .await;
        let (code, _, said) = kubectl.ran("rollout resume deploy/web", "").await;
        assert_eq!((code, said.as_str()), (Some(1), "error: deployments.apps \"web\" is not paused\n"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn set_changes_images_variables_resources_and_selectors() {
    with_each(async |kubectl| {
        kubectl.ok("create cm settings --from-literal=COLOUR=red").await;
        kubectl.ok("create service clusterip web --tcp=80").await;
        let container = "{.spec.template.spec.containers[0]";
        prints(
            kubectl,
            &[
                (
                    "set image deploy/web web=web:2",
                    "deployment.apps/web image updated\n",
                ),
                (
                    "set image deploy -l tier=front *=web:3",
                    "deployment.apps/web image updated\n",
                ),
                (
                    &format!("get deploy web -o jsonpath={container}.image}}"),
                    "web:3",
                ),
                ("set env deploy/web A=1 B=2", "deployment.apps/web env updated\n"),
                ("set env deploy/web A- C=3", "deployment.apps/web env updated\n"),
                (
                    "set env deploy/web --list",
                    "# Deployment web, container web\nB=2\nC=3\n",
                ),
                (
                    "set env deploy/web --from=configmap/settings --prefix=MY_",
                    "deployment.apps/web env updated\n",
                ),
                (
                    &format!("get deploy web -o jsonpath={container}.env[2].valueFrom.configMapKeyRef.key}}"),
                    "COLOUR",
                ),
                (
                    "set resources deploy/web --limits=memory=64Mi --requests=memory=32Mi",
                    "deployment.apps/web resource requirements updated\n",
                ),
                (
                    &format!("get deploy web -o jsonpath={container}.resources}}"),
                    r#"{"limits":{"memory":"64Mi"},"requests":{"memory":"32Mi"}}"#,
                ),
                ("set selector svc web app=other", "service/web selector updated\n"),
                ("get svc web -o jsonpath={.spec.selector}", r#"{"app":"other"}"#),
            ],
        )
        .await;
        let (code, _, said) = kubectl.ran("set image deploy/web none=web:2", "").await;
        assert_eq!(
            (code, said.as_str()),
            (Some(1), "error: unable to find container named \"none\"\n")
        );
    })
    .await;
}

/// Runs `kubectl edit` with a command of sed as the editor.
async fn edit(kubectl: &Kubectl, editor: &str) -> (Option<i32>, String) {
    let mut command = kubectl.command(&["edit", "deploy", "web"]);
    let output = command.env("KUBE_EDITOR", editor).output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edit_writes_what_the_editor_left() {
    with_each(async |kubectl| {
        let edited = edit(kubectl, "sed -i s/image:.web:1/image:\\ web:2/").await;
        assert_eq!(edited, (Some(0), "deployment.apps/web edited\n".to_owned()));
        let image = "get deploy web -o jsonpath={.spec.template.spec.containers[0].image}";
        assert_eq!(kubectl.ok(image).await, "web:2");
        let (code, said) = edit(kubectl, "true").await;
        assert_eq!(code, Some(0));
        contains(&said, &["Edit cancelled, no changes made."]);
        // What is refused comes back to the editor, which leaves it as it is this time.
        let (code, said) = edit(kubectl, "sed -i s/replicas:.2/replicas:\\ -2/").await;
        assert_eq!(code, Some(1), "{said}");
        contains(
            &said,
            &[
                "error: deployments.apps \"web\" is invalid",
                "A copy of your changes has been stored to \"",
            ],
        );
        assert_eq!(
            kubectl.ok("get deploy web -o jsonpath={.spec.replicas}").await,
            "2"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_annotations_and_taints_come_change_and_go() {
    with_each(async |kubectl| {
        prints(
            kubectl,
            &[
                ("label deploy web colour=red", "deployment.apps/web labeled\n"),
                (
                    "label deploy web colour=blue --overwrite",
                    "deployment.apps/web labeled\n",
                ),
                (
                    "label deploy --all colour=blue",
                    "deployment.apps/web not labeled\n",
                ),
                ("label deploy web colour-", "deployment.apps/web unlabeled\n"),
                ("taint node n1 dedicated=x:NoSchedule", "node/n1 tainted\n"),
                ("get node n1 -o jsonpath={.spec.taints[0].key}", "dedicated"),
                (
                    "taint node n1 dedicated=y:NoSchedule --overwrite",
                    "node/n1 modified\n",
                ),
                ("taint node n1 dedicated-", "node/n1 untainted\n"),
                ("get node n1 -o jsonpath={.spec.taints}", ""),
                ("cordon n1", "node/n1 cordoned\n"),
                ("cordon n1", "node/n1 already cordoned\n"),
                ("uncordon n1", "node/n1 uncordoned\n"),
            ],
        )
        .await;
        // Which of two words 1.27 says is random.
        let said = kubectl.ok("annotate deploy -l tier=front note='a b'").await;
        contains(&said, &["deployment.apps/web annotate"]);
        let note = "get deploy web -o jsonpath={.metadata.annotations.note}";
        assert_eq!(kubectl.ok(note).await, "a b");
        kubectl.ok("annotate deploy web note-").await;
        assert_eq!(kubectl.ok(note).await, "");
        let (code, _, said) = kubectl.ran("label deploy web tier=back", "").await;
        assert_eq!(
            (code, said.as_str()),
            (
                Some(1),
                "error: 'tier' already has a value (front), and --overwrite is false\n"
            )
        );
        let (code, _, said) = kubectl.ran("taint node n1 dedicated-", "").await;
        assert_eq!(
            (code, said.as_str()),
            (Some(1), "error: taint \"dedicated\" not found\n")
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_remembers_takes_back_and_hands_over() {
    with_each(async |kubectl| {
        let settings = |data: &str| {
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{{data}}}\n")
        };
        let apply = |data: &str| (["apply", "-f", "-"], settings(data));
        let (line, input) = apply("a: '1', b: '1'");
        assert_eq!(kubectl.run(&line, &input).await, "configmap/settings created\n");
        let last = kubectl.ok("apply view-last-applied cm settings -o json").await;
        contains(&last, &["\"a\": \"1\""]);
        kubectl
            .ok("patch cm settings -p {\"data\":{\"by\":\"hand\"}}")
            .await;
        let (line, input) = apply("a: '2'");
        assert_eq!(
            kubectl.run(&line, &input).await,
            "configmap/settings configured\n"
        );
        let data = "get cm settings -o jsonpath={.data}";
        assert_eq!(kubectl.ok(data).await, r#"{"a":"2","by":"hand"}"#);
        // The same person goes over to server-side apply: no conflict with what was theirs.
        let server = ["apply", "--server-side", "-f", "-"];
        let applied = kubectl.run(&server, &settings("a: '3'")).await;
        assert_eq!(applied, "configmap/settings serverside-applied\n");
        assert_eq!(kubectl.ok(data).await, r#"{"a":"3","by":"hand"}"#);

        // Server-side: what a manager no longer names goes, what others own stays.
        let apply = |manager: &'static str| ["apply", "--server-side", "--field-manager", manager, "-f", "-"];
        kubectl.ok("delete cm settings").await;
        kubectl.run(&apply("one"), &settings("a: '1', b: '1'")).await;
        kubectl.run(&apply("two"), &settings("b: '1', c: '1'")).await;
        kubectl.run(&apply("one"), &settings("a: '1'")).await;
        assert_eq!(kubectl.ok(data).await, r#"{"a":"1","b":"1","c":"1"}"#);
        kubectl.run(&apply("two"), &settings("c: '1'")).await;
        assert_eq!(kubectl.ok(data).await, r#"{"a":"1","c":"1"}"#);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_k_builds_and_applies_a_folder() {
    with_each(async |kubectl| {
        let folder = kubectl.home.path().join("shop");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("web.yaml"), WEB).unwrap();
        let kustomization = "namePrefix: pre-\nresources: [web.yaml]\nconfigMapGenerator:\n- name: made\n  literals: [a=b]\nimages:\n- {name: web, newName: localhost/web, newTag: '7'}\n";
        fs::write(folder.join("kustomization.yaml"), kustomization).unwrap();
        let folder = folder.to_str().unwrap();
        let applied = kubectl.run(&["apply", "-k", folder], "").await;
        contains(&applied, &["configmap/pre-made-", "deployment.apps/pre-web created\n"]);
        let image = "get deploy pre-web -o jsonpath={.spec.template.spec.containers[0].image}";
        assert_eq!(kubectl.ok(image).await, "localhost/web:7");
        assert_eq!(kubectl.run(&["diff", "-k", folder], "").await, "");
        let applied = kubectl.run(&["apply", "-k", folder], "").await;
        contains(&applied, &["deployment.apps/pre-web unchanged\n"]);
        let deleted = kubectl.run(&["delete", "-k", folder], "").await;
        contains(&deleted, &["deployment.apps \"pre-web\" deleted"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn diff_tells_by_its_code() {
    with_each(async |kubectl| {
        let diff = |input: String| async move { kubectl.ran("diff -f -", &input).await };
        let (code, text, _) = diff(WEB.to_owned()).await;
        assert_eq!((code, text.as_str()), (Some(0), ""));
        let (code, text, _) = diff(WEB.replace("web:1", "web:2")).await;
        assert_eq!(code, Some(1));
        contains(&text, &["-      - image: web:1\n", "+      - image: web:2\n"]);
        let (code, text, _) = diff(WEB.replace("name: web\n  labels", "name: new\n  labels")).await;
        assert_eq!(code, Some(1));
        contains(&text, &["+kind: Deployment\n"]);
        let (code, _, said) = diff(WEB.replace("replicas: 2", "replicas: -1")).await;
        assert!(code > Some(1), "{code:?} {said}");
        contains(&said, &["The Deployment \"web\" is invalid: spec.replicas: "]);
        let (code, text, _) = kubectl
            .ran("diff --server-side -f -", &WEB.replace("web:1", "web:2"))
            .await;
        assert_eq!(code, Some(1), "no conflict with the client-side apply: {text}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patches_replaces_and_scales() {
    with_each(async |kubectl| {
        let labels = "get deploy web -o jsonpath={.metadata.labels}";
        prints(
            kubectl,
            &[
                ("patch deploy web -p {\"spec\":{\"replicas\":3}}", "deployment.apps/web patched\n"),
                ("patch deploy web -p {\"spec\":{\"replicas\":3}}", "deployment.apps/web patched (no change)\n"),
                ("patch deploy web --type=merge -p {\"metadata\":{\"labels\":{\"tier\":null,\"a\":\"b\"}}}", "deployment.apps/web patched\n"),
                (labels, r#"{"a":"b"}"#),
                ("patch deploy web --type=json -p [{\"op\":\"test\",\"path\":\"/metadata/labels/a\",\"value\":\"b\"},{\"op\":\"add\",\"path\":\"/metadata/labels/c~1d\",\"value\":\"e\"}]", "deployment.apps/web patched\n"),
                (labels, r#"{"a":"b","c/d":"e"}"#),
                ("patch deploy web --subresource=scale --type=merge -p {\"spec\":{\"replicas\":1}}", "scale.autoscaling/web patched\n"),
                ("get deploy web --subresource=scale -o jsonpath={.spec.replicas}", "1"),
                ("scale deploy/web --replicas=4", "deployment.apps/web scaled\n"),
                ("scale --replicas=5 deploy -l c/d=e", "deployment.apps/web scaled\n"),
                ("get deploy web -o jsonpath={.spec.replicas}", "5"),
            ],
        )
        .await;
        let (code, _, said) = kubectl
            .ran("patch deploy web --type=json -p [{\"op\":\"test\",\"path\":\"/metadata/labels/a\",\"value\":\"z\"}]", "")
            .await;
        assert_eq!(code, Some(1), "{said}");
        let uid = "get deploy web -o jsonpath={.metadata.uid}";
        let before = kubectl.ok(uid).await;
        let replaced = kubectl.run(&["replace", "-f", "-"], WEB).await;
        assert_eq!(replaced, "deployment.apps/web replaced\n");
        assert_eq!(kubectl.ok(labels).await, r#"{"tier":"front"}"#);
        assert_eq!(kubectl.ok(uid).await, before);
        let replaced = kubectl.run(&["replace", "--force", "-f", "-"], WEB).await;
        contains(&replaced, &["deployment.apps \"web\" deleted", "deployment.apps/web replaced\n"]);
        assert_ne!(kubectl.ok(uid).await, before, "another object of that name");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delete_takes_what_is_meant_and_no_more() {
    with_each(async |kubectl| {
        kubectl.run(&["apply", "-f", "-"], SETTINGS).await;
        kubectl
            .run(
                &["apply", "-f", "-"],
                "apiVersion: v1\nkind: Namespace\nmetadata: {name: aside}\n",
            )
            .await;
        kubectl.run(&["apply", "-n", "aside", "-f", "-"], SETTINGS).await;
        let names = "get cm -o name";
        contains(
            &kubectl.ok("delete cm -l colour=red").await,
            &["configmap \"one\" deleted"],
        );
        assert_eq!(kubectl.ok(names).await, "configmap/three\nconfigmap/two\n");
        let dry = kubectl.ok("delete cm --all --dry-run=server").await;
        contains(&dry, &["configmap \"two\" deleted", "(server dry run)"]);
        assert_eq!(kubectl.ok(names).await, "configmap/three\nconfigmap/two\n");
        let (code, text, said) = kubectl.ran("delete cm none two", "").await;
        assert_eq!(code, Some(1), "what is there goes all the same");
        contains(&text, &["configmap \"two\" deleted"]);
        contains(&said, &["configmaps \"none\" not found"]);
        kubectl.ok("delete cm --all").await;
        assert_eq!(kubectl.ok(names).await, "");
        assert_eq!(kubectl.ok("get cm -n aside -o name").await.lines().count(), 3);
        assert_eq!(kubectl.ok("delete cm --all").await, "No resources found\n");

        kubectl.ok("run single --image=x:1").await;
        let (code, text, said) = kubectl
            .ran("delete pod single --force --grace-period=0", "")
            .await;
        assert_eq!(code, Some(0), "{said}");
        contains(&text, &["pod \"single\" force deleted"]);
        let deleted = kubectl
            .ok("delete deploy web --cascade=background --timeout=20s")
            .await;
        contains(&deleted, &["deployment.apps \"web\" deleted"]);
        kubectl.run(&["create", "-f", "-"], WEB).await;
        kubectl.ok("delete cm --all -n aside").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_shown_with_what_they_are_about() {
    with_each(async |kubectl| {
        kubectl.ok("run single --image=x:1").await;
        let uid = kubectl.ok("get pod single -o jsonpath={.metadata.uid}").await;
        let event = |name: &str, about: &str, uid: &str, kind: &str| {
            format!("apiVersion: v1\nkind: Event\nmetadata: {{name: {name}, namespace: default}}\ninvolvedObject: {{apiVersion: v1, kind: Pod, name: {about}, namespace: default, uid: '{uid}'}}\nreason: Told\nmessage: told about {about}\ntype: {kind}\ncount: 1\nfirstTimestamp: '2027-01-15T08:00:00Z'\nlastTimestamp: '2027-01-15T08:00:00Z'\n---\n")
        };
        let events = event("single.1", "single", &uid, "Normal") + &event("other.1", "other", "", "Warning");
        kubectl.run(&["create", "-f", "-"], &events).await;
        contains(&kubectl.ok("events").await, &["LAST SEEN", "told about single", "told about other"]);
        for (line, shown) in [
            ("events --for pod/single", "single"),
            ("events --types=Warning", "other"),
            ("get events --field-selector=type=Warning", "other"),
            ("get events --field-selector=involvedObject.name=single", "single"),
            ("describe pod single", "single"),
        ] {
            let text = kubectl.ok(line).await;
            let told: Vec<&str> = ["single", "other"]
                .into_iter()
                .filter(|name| text.contains(&format!("told about {name}")))
                .collect();
            assert_eq!(told, [shown], "{line}: {text}");
        }
        kubectl.ok("delete events --all").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_says_what_it_is() {
    with_each(async |kubectl| {
        let versions = kubectl.ok("api-versions").await;
        for version in ["apps/v1", "networking.k8s.io/v1", "authorization.k8s.io/v1", "v1"] {
            assert!(
                versions.lines().any(|line| line == version),
                "{version} is not in {versions}"
            );
        }
        contains(
            &kubectl.ok("cluster-info").await,
            &["Kubernetes control plane", "https://127.0.0.1:"],
        );
        let resources = kubectl
            .ok("api-resources --verbs=list --namespaced -o name")
            .await;
        contains(&resources, &["configmaps\n", "deployments.apps\n"]);
        assert!(!resources.contains("nodes"), "{resources}");
        contains(
            &kubectl.ok("api-resources --api-group=apps --no-headers").await,
            &["deploy", "Deployment"],
        );
        contains(
            &kubectl.ok("version -o json").await,
            &["\"serverVersion\"", "\"minor\": \"33\""],
        );
        // All the kinds that it looks at.
        if ["daemonsets.apps", "replicationcontrollers"]
            .iter()
            .all(|kind| resources.contains(kind))
        {
            let dump = kubectl.ok("cluster-info dump --namespaces=default").await;
            contains(
                &dump,
                &[
                    "\"kind\": \"NodeList\"",
                    "\"kind\": \"DeploymentList\"",
                    "\"name\": \"web\"",
                ],
            );
        } else {
            eprintln!("skipped: cluster-info dump needs daemon sets and replication controllers");
        }
        let (code, _, _) = kubectl.ran("auth can-i create deployments.apps", "").await;
        assert_eq!(code, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_made_from_words() {
    with_each(async |kubectl| {
        let file = kubectl.home.path().join("settings.properties");
        fs::write(&file, "a=b\n").unwrap();
        let file = format!("create cm files --from-file={}", file.display());
        prints(
            kubectl,
            &[
                (&file, "configmap/files created\n"),
                ("get cm files -o jsonpath={.data.settings\\.properties}", "a=b\n"),
                ("run single --image=x:1 --labels=a=b --env=C=d --restart=Never --command -- sleep 1", "pod/single created\n"),
                ("get pod single -o jsonpath={.spec.restartPolicy}/{.metadata.labels.a}/{.spec.containers[0].command}", "Never/b/[\"sleep\",\"1\"]"),
                ("expose deploy web --port=80 --target-port=8080 --name=front", "service/front exposed\n"),
                ("get svc front -o jsonpath={.spec.selector.app}/{.spec.ports[0].targetPort}", "web/8080"),
                ("expose pod single --port=80 --dry-run=server", "service/single exposed (server dry run)\n"),
            ],
        )
        .await;
        let made = kubectl.ok("create deploy made --image=x:1 --dry-run=client -o yaml").await;
        assert_eq!(kubectl.run(&["apply", "-f", "-"], &made).await, "deployment.apps/made created\n");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_hands_on_requests() {
    with_each(async |kubectl| {
        let mut proxy = kubectl.command(&["proxy", "--port=0"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(proxy.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().unwrap();
        let address = line.strip_prefix("Starting to serve on ").unwrap_or_else(|| panic!("{line}"));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = "GET /apis/apps/v1/namespaces/default/deployments/web HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        proxy.kill().await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        contains(&answer, &["\"kind\":\"Deployment\""]);
    })
    .await;
}
