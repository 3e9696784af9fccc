//! A pod network in memory: addresses are counted up from the node's range.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Mutex;

use async_trait::async_trait;
use ipnet::IpNet;

use super::lock;
use crate::ports::{Attachment, ContainerNetwork, HostPort, PodNetwork, PortError, PortRedirect};

/// A [`PodNetwork`] that keeps what it was told.
#[derive(Default)]
pub struct FakeNetwork {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    range: Option<IpNet>,
    routes: BTreeMap<IpNet, IpAddr>,
    refuses_routes: bool,
    pods: HashMap<String, Attached>,
}

#[derive(Clone)]
struct Attached {
    address: IpAddr,
    redirects: Vec<PortRedirect>,
}

impl FakeNetwork {
    /// Returns the redirects of a pod; None if it is not attached.
    pub fn redirects(&self, pod_uid: &str) -> Option<Vec<PortRedirect>> {
        lock(&self.state)
            .pods
            .get(pod_uid)
            .map(|attached| attached.redirects.clone())
    }

    pub fn routes(&self) -> BTreeMap<IpNet, IpAddr> {
        lock(&self.state).routes.clone()
    }

    /// Makes `set_routes` fail, or succeed again.
    pub fn refuse_routes(&self, refuses: bool) {
        lock(&self.state).refuses_routes = refuses;
    }
}

#[async_trait]
impl PodNetwork for FakeNetwork {
    async fn set_range(&self, _cluster: IpNet, node: IpNet) -> Result<(), PortError> {
        lock(&self.state).range = Some(node);
        Ok(())
    }

    fn gateway(&self) -> Option<IpAddr> {
        lock(&self.state).range.and_then(|range| range.hosts().next())
    }

    async fn set_routes(&self, routes: &BTreeMap<IpNet, IpAddr>) -> Result<(), PortError> {
        let mut state = lock(&self.state);
        if state.refuses_routes {
            return Err(PortError::Unavailable {
                operation: "set the routes",
                message: "Nexthop has invalid gateway.".to_owned(),
            });
        }
        state.routes.clone_from(routes);
        Ok(())
    }

    async fn attach(&self, pod_uid: &str, _host_ports: &[HostPort]) -> Result<Attachment, PortError> {
        let mut state = lock(&self.state);
        let range = state.range.ok_or(PortError::Unavailable {
            operation: "attach",
            message: "the node has no range yet".to_owned(),
        })?;
        let address = match state.pods.get(pod_uid) {
            Some(attached) => attached.address,
            None => {
                let taken =
                    |address: &IpAddr| state.pods.values().any(|attached| attached.address == *address);
                let mut free = range.hosts().skip(1).filter(|address| !taken(address));
                let address = free.next().ok_or(PortError::Refused {
                    reason: "NoAddress",
                    message: format!("no address is left in {range}"),
                })?;
                let attached = Attached {
                    address,
                    redirects: Vec::new(),
                };
                state.pods.insert(pod_uid.to_owned(), attached);
                address
            }
        };
        Ok(Attachment {
            address,
            network: ContainerNetwork::Namespace(PathBuf::from("/run/netns").join(pod_uid)),
        })
    }

    async fn set_redirects(&self, pod_uid: &str, redirects: &[PortRedirect]) -> Result<(), PortError> {
        let mut state = lock(&self.state);
        let attached = state.pods.get_mut(pod_uid);
        let attached = attached.ok_or_else(|| PortError::NotFound(format!("namespace of pod {pod_uid}")))?;
        attached.redirects = redirects.to_vec();
        Ok(())
    }

    async fn detach(&self, pod_uid: &str) -> Result<(), PortError> {
        lock(&self.state).pods.remove(pod_uid);
        Ok(())
    }

    async fn attached(&self) -> Result<HashMap<String, IpAddr>, PortError> {
        let state = lock(&self.state);
        Ok(state
            .pods
            .iter()
            .map(|(uid, attached)| (uid.clone(), attached.address))
            .collect())
    }
}
