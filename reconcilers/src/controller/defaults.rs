//! Makes what every namespace has, and makes it again when somebody takes it away: the ServiceAccount `default`, the
//! ConfigMap `kube-root-ca.crt`, and in `default` the Service `kubernetes`, which stands for the API.

use async_trait::async_trait;
use schemas::{Kind, Object, ObjectKey};
use serde_json::json;
use store::{Author, Precondition, Via, WatchEvent, WatchScope, WriteError};

use super::{Context, Next, ReconcileError, Reconciler, Trigger};
use crate::ownership::Holding;

const ACCOUNT: &str = "default";
const AUTHORITY: &str = "kube-root-ca.crt";

/// Returns the key of the Service that stands for the API.
pub fn api_service() -> ObjectKey {
    ObjectKey::new(Kind::Service, "default", "kubernetes")
}

/// Tells whether an object says something of this cluster alone, whatever it is called here: it is in no backup.
pub fn is_of_this_cluster(key: &ObjectKey) -> bool {
    *key == api_service() || key.kind == Kind::ConfigMap && key.name == AUTHORITY
}

/// The controller of what every namespace has. The key is a namespace, whose owner works for it.
pub struct Defaults {
    context: Context,
    authority_pem: String,
    api_port: u16,
}

impl Defaults {
    /// `authority_pem`: the certificate that clients of the API trust. `api_port`: where this node serves it.
    pub fn new(context: Context, authority_pem: String, api_port: u16) -> Self {
        Self {
            context,
            authority_pem,
            api_port,
        }
    }

    /// What a namespace is to have.
    fn wanted(&self, namespace: &str) -> Vec<Object> {
        let new = |kind, name: &str| Object::new(&ObjectKey::new(kind, namespace, name));
        let mut authority = new(Kind::ConfigMap, AUTHORITY);
        authority.set(&["data", "ca.crt"], self.authority_pem.clone());
        let mut wanted = vec![new(Kind::ServiceAccount, ACCOUNT), authority];
        let key = api_service();
        if namespace == key.namespace {
            let mut service = Object::new(&key);
            service.set(
                &["metadata", "labels"],
                json!({"component": "apiserver", "provider": "kubernetes"}),
            );
            // There is no virtual address that could lead from another port to the API's.
            let port = json!({"name": "https", "port": self.api_port, "targetPort": self.api_port});
            service.set(&["spec", "ports"], json!([port]));
            wanted.push(service);
        }
        wanted
    }

    /// Makes what is not there. Users may edit it, but for the certificate and the port.
    async fn keep(&self, wanted: Object) -> Result<(), WriteError> {
        let store = &self.context.store;
        let Some(key) = wanted.key() else { return Ok(()) };
        let there = store.get(&key).filter(|view| view.stored);
        let author = Author {
            manager: "podman-swarm".to_owned(),
            user: String::new(),
            via: Via::Controller,
            unix_seconds: self.context.clock.unix_seconds(),
        };
        let fixed =
            |object: &Object| ["/data", "/spec/ports/0/port"].map(|pointer| object.pointer(pointer).cloned());
        let outcome = match there {
            None => store.create(wanted, author).await,
            Some(view) if fixed(&wanted) == [None, None] || fixed(&view.object) == fixed(&wanted) => {
                return Ok(());
            }
            Some(_) => {
                let change = |object: &Object| {
                    let mut object = object.clone();
                    for path in [&["data"][..], &["spec", "ports"]] {
                        if let Some(value) = wanted.pointer(&format!("/{}", path.join("/"))) {
                            object.set(path, value.clone());
                        }
                    }
                    Ok::<_, WriteError>(object)
                };
                store.update(&key, &Precondition::default(), author, change).await
            }
        };
        match outcome {
            // Somebody else was faster; the event of that wakes this again.
            Ok(_) | Err(WriteError::Exists(_) | WriteError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Reconciler for Defaults {
    type Key = String;

    fn name(&self) -> &'static str {
        "defaults"
    }

    fn scope(&self) -> WatchScope {
        WatchScope {
            kinds: vec![
                Kind::Namespace,
                Kind::ServiceAccount,
                Kind::ConfigMap,
                Kind::Service,
            ],
            namespace: None,
        }
    }

    fn keys(&self, trigger: &Trigger) -> Vec<String> {
        let Trigger::Store(WatchEvent::Put { view, .. } | WatchEvent::Deleted { view }) = trigger else {
            return Vec::new();
        };
        let key = &view.key;
        if key.kind == Kind::Namespace {
            return vec![key.name.clone()];
        }
        let is_kept = match key.kind {
            Kind::ServiceAccount => key.name == ACCOUNT,
            _ => is_of_this_cluster(key),
        };
        is_kept.then(|| key.namespace.clone()).into_iter().collect()
    }

    async fn reconcile(&self, namespace: &String) -> Result<Next, ReconcileError> {
        let key = ObjectKey::cluster(Kind::Namespace, namespace);
        let there = self.context.object(&key);
        if there.is_none_or(|namespace| namespace.is_terminating()) {
            return Ok(Next::Done);
        }
        match self.context.holding(&key) {
            Holding::Other => return Ok(Next::Done),
            Holding::Settling(wait) => return Ok(Next::After(wait)),
            Holding::Mine => {}
        }
        for object in self.wanted(namespace) {
            self.keep(object).await?;
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, author};
    use super::*;

    #[tokio::test]
    async fn every_namespace_has_what_kubernetes_gives_it_and_gets_it_again() {
        let fixture = Fixture::new(10);
        fixture.admit().await;
        let defaults = Defaults::new(fixture.context.clone(), "PEM".to_owned(), 8443);
        let run = async |namespace: &str| defaults.reconcile(&namespace.to_owned()).await.unwrap();
        let there = |key: &ObjectKey| fixture.context.object(key);
        run("default").await;
        assert_eq!(there(&api_service()), None, "there is no such namespace");
        for namespace in ["default", "shop"] {
            let key = ObjectKey::cluster(Kind::Namespace, namespace);
            fixture.store.create(Object::new(&key), author()).await.unwrap();
            run(namespace).await;
        }
        let service = there(&api_service()).unwrap();
        assert_eq!(service.pointer("/spec/ports/0/port"), Some(&json!(8443)));
        assert_eq!(schemas::validate::validate(&service), []);
        let of_shop = |kind, name: &str| ObjectKey::new(kind, "shop", name);
        assert_eq!(there(&of_shop(Kind::Service, "kubernetes")), None);

        let account = of_shop(Kind::ServiceAccount, ACCOUNT);
        fixture
            .edit(&account, &["imagePullSecrets"], json!([{"name": "x"}]))
            .await;
        let authority = of_shop(Kind::ConfigMap, AUTHORITY);
        fixture
            .edit(&authority, &["data", "ca.crt"], json!("somebody's"))
            .await;
        run("shop").await;
        assert_eq!(there(&authority).unwrap().str_at("/data/ca.crt"), "PEM");
        fixture
            .edit(&api_service(), &["spec", "ports"], json!([{"port": 443}]))
            .await;
        run("default").await;
        let service = there(&api_service()).unwrap();
        assert_eq!(service.pointer("/spec/ports/0/port"), Some(&json!(8443)));
        let kept = there(&account).unwrap();
        assert_eq!(kept.str_at("/imagePullSecrets/0/name"), "x", "users may edit it");
        fixture.remove(&account).await;
        run("shop").await;
        let made = there(&account).unwrap();
        assert_ne!(made.uid(), kept.uid());
        assert_eq!(made.pointer("/imagePullSecrets"), None);

        let going = ObjectKey::cluster(Kind::Namespace, "shop");
        fixture
            .edit(
                &going,
                &["metadata", "deletionTimestamp"],
                json!("2026-11-28T00:00:00Z"),
            )
            .await;
        fixture.remove(&account).await;
        run("shop").await;
        assert_eq!(there(&account), None, "a namespace that ends gets nothing");
    }

    #[tokio::test]
    async fn what_is_wanted_wakes_it_and_nothing_else() {
        let fixture = Fixture::new(10);
        let defaults = Defaults::new(fixture.context.clone(), "PEM".to_owned(), 8443);
        for (key, woken) in [
            (ObjectKey::cluster(Kind::Namespace, "shop"), true),
            (ObjectKey::new(Kind::ServiceAccount, "shop", "default"), true),
            (ObjectKey::new(Kind::ServiceAccount, "shop", "robot"), false),
            (ObjectKey::new(Kind::ConfigMap, "shop", "kube-root-ca.crt"), true),
            (ObjectKey::new(Kind::Service, "shop", "kubernetes"), false),
            (api_service(), true),
        ] {
            let view = fixture.store.create(Object::new(&key), author()).await.unwrap();
            let keys = defaults.keys(&Trigger::Store(WatchEvent::Deleted { view }));
            assert_eq!(keys.len(), usize::from(woken), "{key}");
        }
    }
}
