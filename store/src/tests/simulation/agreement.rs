//! What nodes do only together: squash histories and close rounds, proposed by any node to all that it sees.

use std::collections::BTreeSet;

use bytes::Bytes;
use rand::seq::IndexedRandom;
use schemas::Kind;

use super::node::{Asked, Asking, Outcome, Purpose};
use super::world::{Content, World};
use crate::Store;

impl World {
    /// Who would have to agree: a node, the peers that it sees, and whether they are all; None, if they are too few.
    fn electorate(&mut self) -> Option<(usize, Store, Vec<usize>, bool)> {
        // Any node: that only the first proposes is for speed.
        let ready: Vec<usize> = (0..self.nodes.len()).filter(|at| self.is_ready(*at)).collect();
        let node = ready.choose(&mut self.random).copied()?;
        let store = self.store(node)?;
        let members = store.list(Kind::Member, None).items;
        let admitted: BTreeSet<String> = members.into_iter().map(|view| view.key.name).collect();
        if !admitted.contains(&self.nodes[node].id.0) {
            return None;
        }
        let is_member = |other: &usize| admitted.contains(&self.nodes[*other].id.0);
        let peers: Vec<usize> = (0..self.nodes.len())
            .filter(|other| self.is_connected(node, *other))
            .filter(is_member)
            .collect();
        // It may not have heard yet that somebody is there.
        let peers: Vec<usize> = peers.into_iter().filter(|_| !self.chance(0.03)).collect();
        let present = peers.len() + 1;
        (present * 2 > admitted.len()).then_some((node, store, peers, present == admitted.len()))
    }

    pub(super) fn propose(&mut self) {
        let Some((node, store, peers, is_everyone)) = self.electorate() else {
            return;
        };
        if let Some(proposal) = store.propose_beyond(self.weather.long, self.weather.kept) {
            let bytes = proposal.frame();
            self.ask(
                node,
                peers,
                bytes,
                Asked::Squash {
                    proposal,
                    is_everyone,
                },
            );
        }
    }

    pub(super) fn propose_closing(&mut self) {
        let Some((node, store, peers, _)) = self.electorate() else {
            return;
        };
        let many = self.weather.many;
        if let Some(agent) = &mut self.nodes[node].agent {
            agent.begin(Purpose::Propose { peers }, async move {
                Outcome::Propose(store.propose_closing_beyond(many).await)
            });
        }
        self.go_on(node);
    }

    pub(super) fn ask(&mut self, node: usize, peers: Vec<usize>, bytes: Bytes, what: Asked) {
        self.proposals += 1;
        let number = self.proposals;
        for peer in &peers {
            self.send(
                node,
                *peer,
                Content::Ask {
                    bytes: bytes.clone(),
                    proposal: number,
                },
            );
        }
        if let Some(agent) = &mut self.nodes[node].agent {
            let sort = std::mem::discriminant(&what);
            agent
                .asking
                .retain(|asking| std::mem::discriminant(&asking.what) != sort);
            agent.asking.push(Asking {
                number,
                what,
                silent: peers,
            });
        }
        self.act_if_agreed(node, number);
    }

    pub(super) fn agreed(&mut self, node: usize, peer: usize, number: u64, answer: &[u8]) {
        let Some(agent) = &mut self.nodes[node].agent else {
            return;
        };
        if let Some(asking) = agent.asking.iter_mut().find(|asking| asking.number == number)
            && let Some(at) = asking.silent.iter().position(|silent| *silent == peer)
        {
            asking.silent.remove(at);
            match &mut asking.what {
                Asked::Squash { proposal, .. } => proposal.answered(answer),
                Asked::Close(closing) => closing.answered(answer),
            }
            self.act_if_agreed(node, number);
        }
    }

    fn act_if_agreed(&mut self, node: usize, number: u64) {
        let Some(agent) = &mut self.nodes[node].agent else {
            return;
        };
        let is_agreed = |asking: &mut Asking| asking.number == number && asking.silent.is_empty();
        let Some(asking) = agent.asking.extract_if(.., is_agreed).next() else {
            return;
        };
        let store = agent.store.clone();
        match asking.what {
            Asked::Squash {
                proposal,
                is_everyone,
            } => agent.begin(Purpose::Own, async move {
                Outcome::Squash(store.squash(proposal, is_everyone).await)
            }),
            Asked::Close(closing) => {
                agent.begin(Purpose::Own, async move {
                    Outcome::Close(store.close_round(closing).await)
                });
            }
        }
        self.go_on(node);
    }
}
