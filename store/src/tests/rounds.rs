//! Tombstones are dropped round by round, and nothing comes back by it.

use schemas::Kind;

use super::*;
use crate::Lost;
use crate::rounds::MANY;

pub(super) fn id(number: usize) -> NodeId {
    NodeId(format!("node{number}"))
}

/// Stores as the driver of rounds sees them; all frames are kept, for those that come late or twice.
pub(super) struct Nodes {
    pub(super) stores: Vec<Store>,
    pub(super) disks: Vec<MemoryDisk>,
    pub(super) pushes: Vec<tokio::sync::broadcast::Receiver<crate::Push>>,
    pub(super) frames: Vec<(usize, bytes::Bytes)>,
}

impl Nodes {
    pub(super) fn new(count: usize) -> Self {
        let mut nodes = Self {
            stores: Vec::new(),
            disks: Vec::new(),
            pushes: Vec::new(),
            frames: Vec::new(),
        };
        for number in 0..count {
            nodes.disks.push(MemoryDisk::default());
            let store = Store::open_in_memory(nodes.disks[number].clone(), options(&id(number).0)).unwrap();
            nodes.pushes.push(store.pushes());
            nodes.stores.push(store);
        }
        nodes
    }

    pub(super) fn restart(&mut self, at: usize) {
        self.disks[at] = self.disks[at].after_power_loss();
        self.stores[at] = Store::open_in_memory(self.disks[at].clone(), options(&id(at).0)).unwrap();
        self.pushes[at] = self.stores[at].pushes();
    }

    pub(super) fn keep_pushes(&mut self) {
        for (number, pushes) in self.pushes.iter_mut().enumerate() {
            while let Ok(push) = pushes.try_recv() {
                let frame = self.stores[number].push_frame(&[push]).unwrap();
                self.frames.push((number, frame));
            }
        }
    }

    pub(super) async fn exchange(&mut self, from: usize, to: usize) -> usize {
        if from == to {
            return 1;
        }
        let mut next = self.stores[from].begin_exchange(&id(to));
        let (mut sender, mut receiver, mut frames) = (from, to, 0);
        while let Exchange::Send(frame) = next {
            frames += 1;
            assert!(frames < 300, "an exchange that does not end");
            self.frames.push((sender, frame.clone()));
            next = self.stores[receiver].receive(&id(sender), &frame).await.unwrap();
            (sender, receiver) = (receiver, sender);
        }
        frames
    }

    pub(super) async fn exchange_all(&mut self) {
        for from in 0..self.stores.len() {
            for to in 0..self.stores.len() {
                self.exchange(from, to).await;
            }
        }
    }

    /// Closes a round as the driver does, with those who hear of it; `many` tombstones are worth one.
    pub(super) async fn close(&mut self, at: usize, hear: &[bool], many: usize) -> bool {
        let present: Vec<usize> = (0..self.stores.len())
            .filter(|other| *other == at || hear[*other])
            .collect();
        if present.len() * 2 <= self.stores.len() {
            return false;
        }
        let closing = self.stores[at].propose_closing_beyond(many).await.unwrap();
        let Some(mut closing) = closing else {
            return false;
        };
        for other in present.iter().filter(|other| **other != at) {
            self.frames.push((at, closing.frame()));
            match self.stores[*other]
                .receive(&id(at), &closing.frame())
                .await
                .unwrap()
            {
                Exchange::Send(answer) => closing.answered(&answer),
                Exchange::Done => closing.answered(&[]),
            }
        }
        self.stores[at].close_round(closing).await.unwrap()
    }

    /// Closes a round, and tells everybody there.
    pub(super) async fn close_and_tell(&mut self, at: usize, hear: &[bool], many: usize) -> bool {
        let is_closed = self.close(at, hear, many).await;
        for other in (0..hear.len()).filter(|other| hear[*other] && *other != at) {
            self.exchange(at, other).await;
        }
        is_closed
    }

    pub(super) fn assert_equal(&self) {
        for store in &self.stores {
            assert_eq!(store.digest(), self.stores[0].digest());
            assert_eq!(store.floor(), self.stores[0].floor());
            assert!(!store.standing().borrow().catching_up);
        }
    }
}

const ALL: [bool; 3] = [true; 3];
const FIRST_TWO: [bool; 3] = [true, true, false];

pub(super) async fn create(store: &Store, name: &str) -> View {
    store.create(role(name), author("x")).await.unwrap()
}

/// Of no namespace.
pub(super) fn role(name: &str) -> Object {
    let mut role = Object::new(&ObjectKey::cluster(Kind::Node, name));
    role.set(&["metadata", "labels", "of"], name);
    role
}

pub(super) async fn remove(store: &Store, key: &ObjectKey) {
    store
        .remove(key, &Precondition::default(), author("x"))
        .await
        .unwrap();
}

/// Three nodes with some objects that all know.
async fn three(names: &[&str]) -> (Nodes, Vec<View>) {
    let mut nodes = Nodes::new(3);
    let mut views = Vec::new();
    for name in names {
        views.push(create(&nodes.stores[0], name).await);
    }
    nodes.exchange_all().await;
    nodes.assert_equal();
    (nodes, views)
}

fn frame(exchange: Exchange) -> bytes::Bytes {
    match exchange {
        Exchange::Send(frame) => frame,
        Exchange::Done => panic!("there is something to say"),
    }
}

#[tokio::test]
async fn a_closed_round_drops_its_tombstones_and_who_slept_brings_nothing_back() {
    let (mut nodes, views) = three(&["a", "b", "kept"]).await;
    // The third is away and edits what the others remove.
    edit(&nodes.stores[2], &views[1].key, |object| {
        object.set(&["metadata", "labels", "mine"], "1")
    })
    .await;
    for view in &views[..2] {
        remove(&nodes.stores[1], &view.key).await;
    }
    assert!(!nodes.close_and_tell(0, &FIRST_TWO, 2).await, "not all know it");
    nodes.exchange(0, 1).await;
    assert!(nodes.close_and_tell(0, &FIRST_TWO, 2).await);
    for (number, store) in nodes.stores.iter().enumerate().take(2) {
        assert_eq!(
            (store.round(), store.floor(), store.tombstones()),
            (1, 1, 0),
            "{number}"
        );
        assert!(store.is_removed(&views[0].key, views[0].object.uid()));
        assert!(!store.is_removed(&views[2].key, views[2].object.uid()));
        assert_eq!(store.standing().borrow().catch_ups, 0);
    }
    nodes.exchange(2, 1).await;
    nodes.exchange_all().await;
    nodes.assert_equal();
    let third = &nodes.stores[2];
    for view in &views[..2] {
        assert!(third.get(&view.key).is_none());
        assert!(third.is_removed(&view.key, view.object.uid()));
    }
    assert_eq!(
        third.get(&views[2].key).unwrap().object.uid(),
        views[2].object.uid()
    );
    let standing = *third.standing().borrow();
    assert_eq!(
        (standing.catch_ups, standing.taken_away, standing.rescued),
        (1, 2, 1)
    );
    let rescued = third.rescued();
    assert_eq!(rescued[0].key, views[1].key);
    assert_eq!(rescued[0].object.label("mine"), Some("1"));
    // A name that is used again is another object.
    let again = create(third, "a").await;
    assert_ne!(again.object.uid(), views[0].object.uid());
    // All of it lasts.
    for at in 0..3 {
        nodes.restart(at);
    }
    nodes.exchange_all().await;
    nodes.assert_equal();
    assert_eq!(nodes.stores[0].floor(), 1);
    assert!(nodes.stores[0].get(&again.key).is_some());
}

#[tokio::test]
async fn digests_from_before_a_node_had_to_catch_up_settle_nothing() {
    let (mut nodes, views) = three(&["a"]).await;
    remove(&nodes.stores[1], &views[0].key).await;
    nodes.exchange(0, 1).await;
    // The third says what it holds, and creates something, before it hears that a round was closed without it.
    let early = frame(nodes.stores[2].begin_exchange(&id(0)));
    let late = create(&nodes.stores[2], "late").await;
    assert!(nodes.close_and_tell(0, &FIRST_TWO, 1).await);
    let answer = frame(nodes.stores[0].receive(&id(2), &early).await.unwrap());
    let news = frame(nodes.stores[1].begin_exchange(&id(2)));
    nodes.stores[2].receive(&id(1), &news).await.unwrap();
    assert!(nodes.stores[2].standing().borrow().catching_up);
    // It says so again to the same peer, and only then gets the answer to what it said first.
    nodes.stores[2].begin_exchange(&id(0));
    let next = frame(nodes.stores[2].receive(&id(0), &answer).await.unwrap());
    let (_, next) = crate::frame::decode(&next).unwrap();
    assert!(
        matches!(next, crate::frame::Body::Digests { .. }),
        "it begins anew"
    );
    assert!(nodes.stores[2].standing().borrow().catching_up);
    nodes.exchange_all().await;
    nodes.assert_equal();
    assert!(!nodes.stores[2].standing().borrow().catching_up);
    assert!(nodes.stores.iter().all(|store| store.get(&late.key).is_none()));
    assert_eq!(nodes.stores[2].rescued()[0].key, late.key);
}

#[tokio::test]
async fn a_deletion_that_was_acknowledged_by_who_was_away_is_not_dropped_with_the_round() {
    let (mut nodes, views) = three(&["a", "b", "c"]).await;
    remove(&nodes.stores[0], &views[0].key).await;
    nodes.exchange(0, 1).await;
    remove(&nodes.stores[2], &views[1].key).await;
    assert!(nodes.close_and_tell(1, &FIRST_TWO, 1).await);
    // By a push, before it knows; and by its own comparison.
    remove(&nodes.stores[2], &views[2].key).await;
    nodes.keep_pushes();
    let (_, push) = nodes.frames.pop().unwrap();
    nodes.stores[0].receive(&id(2), &push).await.unwrap();
    assert!(nodes.stores[0].get(&views[2].key).is_none());
    nodes.exchange(1, 2).await;
    nodes.exchange_all().await;
    nodes.assert_equal();
    for store in &nodes.stores {
        assert!(store.list(Kind::Node, None).items.is_empty());
        assert_eq!(store.tombstones(), 2);
    }
    assert!(nodes.close_and_tell(0, &ALL, 2).await);
    nodes.assert_equal();
    assert_eq!((nodes.stores[0].tombstones(), nodes.stores[0].floor()), (0, 2));
}

#[tokio::test]
async fn what_nobody_else_can_have_had_is_created_again_and_the_rest_is_set_aside() {
    let (mut nodes, views) = three(&["a"]).await;
    remove(&nodes.stores[0], &views[0].key).await;
    nodes.exchange(0, 1).await;
    let shared = create(&nodes.stores[2], "shared").await;
    nodes.stores[2].set_alone(true);
    let alone = create(&nodes.stores[2], "alone").await;
    edit(&nodes.stores[2], &alone.key, |object| {
        object.set(&["metadata", "labels", "edited"], "1")
    })
    .await;
    nodes.stores[2]
        .create(namespace("shop"), author("x"))
        .await
        .unwrap();
    let mut inside = deployment("web");
    inside.set(&["metadata", "namespace"], "shop");
    let inside = nodes.stores[2].create(inside, author("x")).await.unwrap();
    let nowhere = nodes.stores[2]
        .create(deployment("db"), author("x"))
        .await
        .unwrap();
    // A restart does not make it forget, nor that peers are heard before they are spoken to.
    nodes.restart(2);
    nodes.stores[2].set_alone(false);
    assert!(nodes.close_and_tell(0, &FIRST_TWO, 1).await);
    nodes.exchange(2, 0).await;
    nodes.exchange_all().await;
    nodes.assert_equal();
    let seen = |key: &ObjectKey| nodes.stores[1].get(key);
    let again = seen(&alone.key).expect("created again");
    assert_ne!(again.object.uid(), alone.object.uid());
    assert_eq!(again.object.label("edited"), Some("1"));
    assert_eq!(nodes.stores[1].history(&alone.key, 9).unwrap().changes.len(), 2);
    assert!(seen(&inside.key).is_some());
    for lost in [&shared, &nowhere] {
        assert!(seen(&lost.key).is_none());
    }
    let rescued: Vec<ObjectKey> = nodes.stores[2]
        .rescued()
        .iter()
        .map(|rescued| rescued.key.clone())
        .collect();
    assert_eq!(rescued, [nowhere.key, shared.key]);
    assert!(nodes.stores[1].orphaned_by_namespace().is_empty());
    assert_eq!(nodes.stores[2].standing().borrow().replayed, 3);
}

#[tokio::test]
async fn what_is_created_before_the_first_word_of_others_is_created_again() {
    let (mut nodes, views) = three(&["a"]).await;
    remove(&nodes.stores[0], &views[0].key).await;
    nodes.exchange(0, 1).await;
    let third = nodes.stores[2].clone();
    third.set_alone(true);
    assert!(nodes.close_and_tell(0, &FIRST_TWO, 1).await);
    third.set_alone(false);
    let early = create(&third, "early").await;
    assert!(nodes.pushes[2].try_recv().is_err(), "nobody has it");
    // That others are in reach is said again and again.
    third.set_alone(false);
    let later = create(&third, "later").await;
    nodes.exchange(2, 0).await;
    nodes.exchange_all().await;
    nodes.assert_equal();
    for lost in [early, later] {
        let again = nodes.stores[1].get(&lost.key).expect("created again");
        assert_ne!(again.object.uid(), lost.object.uid());
    }
    assert!(third.rescued().is_empty());
    // From then on what is created is pushed at once.
    create(&third, "after").await;
    assert!(nodes.pushes[2].try_recv().is_ok());
}

#[tokio::test]
async fn what_was_sent_to_anybody_is_not_created_again() {
    let (mut nodes, views) = three(&["a"]).await;
    nodes.stores[2].set_alone(true);
    let alone = create(&nodes.stores[2], "alone").await;
    nodes.stores[2].set_alone(false);
    assert!(
        nodes.pushes[2].try_recv().is_err(),
        "what is created alone is not pushed"
    );
    nodes.exchange(2, 1).await;
    remove(&nodes.stores[1], &alone.key).await;
    remove(&nodes.stores[1], &views[0].key).await;
    nodes.exchange(1, 0).await;
    assert!(nodes.close_and_tell(0, &FIRST_TWO, 2).await);
    nodes.exchange_all().await;
    nodes.assert_equal();
    assert!(nodes.stores[0].list(Kind::Node, None).items.is_empty());
    assert_eq!(nodes.stores[2].standing().borrow().replayed, 0);
}

#[tokio::test]
async fn a_node_that_has_to_catch_up_takes_no_writes_and_reads_go_on() {
    let (mut nodes, views) = three(&["a", "b"]).await;
    create(&nodes.stores[2], "late").await;
    remove(&nodes.stores[0], &views[0].key).await;
    nodes.exchange(0, 1).await;
    assert!(nodes.close_and_tell(0, &FIRST_TWO, 1).await);
    nodes.keep_pushes();
    create(&nodes.stores[0], "new").await;
    let push = nodes.pushes[0].recv().await.unwrap();
    let push = nodes.stores[0].push_frame(&[push]).unwrap();
    let third = nodes.stores[2].clone();
    let mut standing = third.standing();
    third.receive(&id(0), &push).await.unwrap();
    assert!(standing.borrow_and_update().catching_up);
    let refused = third.create(role("x"), author("x")).await;
    assert!(matches!(refused, Err(WriteError::CatchingUp(_))), "{refused:?}");
    let refused = third
        .remove(&views[1].key, &Precondition::default(), author("x"))
        .await;
    assert!(matches!(refused, Err(WriteError::CatchingUp(_))));
    assert!(third.get(&views[1].key).is_some());
    assert!(
        !third.is_removed(&views[0].key, views[0].object.uid()),
        "it cannot know yet"
    );
    let member = Object::new(&ObjectKey::cluster(Kind::Member, "m"));
    third.create(member, author("x")).await.unwrap();
    // Cut off again, it serves its side as before.
    third.set_alone(true);
    assert!(!standing.borrow_and_update().catching_up);
    create(&third, "x").await;
    third.set_alone(false);
    nodes.exchange(0, 2).await;
    nodes.exchange_all().await;
    nodes.assert_equal();
    create(&third, "y").await;
    assert!(third.get(&ObjectKey::cluster(Kind::Node, "x")).is_some());
    assert_eq!(
        third.rescued().len(),
        1,
        "what it created when others were said to be in reach"
    );
}

#[tokio::test]
async fn one_proposer_closes_a_round() {
    let (mut nodes, views) = three(&["a"]).await;
    remove(&nodes.stores[0], &views[0].key).await;
    nodes.exchange_all().await;
    // Both think that they are the first, and raise the same round.
    let mut first = nodes.stores[0].propose_closing_beyond(1).await.unwrap().unwrap();
    let mut second = nodes.stores[1].propose_closing_beyond(1).await.unwrap().unwrap();
    assert_eq!((nodes.stores[0].round(), nodes.stores[1].round()), (1, 1));
    let ask = async |store: &Store, from: usize, closing: &mut crate::Closing| {
        match store.receive(&id(from), &closing.frame()).await.unwrap() {
            Exchange::Send(answer) => closing.answered(&answer),
            Exchange::Done => closing.answered(&[]),
        }
        closing.is_agreed()
    };
    assert!(ask(&nodes.stores[2], 1, &mut second).await);
    assert!(!ask(&nodes.stores[2], 0, &mut first).await);
    assert!(!nodes.stores[0].close_round(first).await.unwrap());
    // After a restart a node does not know to whom it agreed.
    nodes.restart(2);
    let mut again = nodes.stores[1].propose_closing_beyond(1).await.unwrap().unwrap();
    assert_eq!(nodes.stores[1].round(), 1, "it is tried again");
    assert!(!ask(&nodes.stores[2], 1, &mut again).await);
    assert!(!nodes.stores[1].close_round(again).await.unwrap());
    assert!(nodes.close_and_tell(1, &ALL, 1).await);
    nodes.exchange_all().await;
    nodes.assert_equal();
    assert_eq!(nodes.stores[0].floor(), 2);
    // What changes after all agreed is not closed over.
    let b = create(&nodes.stores[0], "b").await;
    remove(&nodes.stores[0], &b.key).await;
    nodes.exchange_all().await;
    let mut closing = nodes.stores[0].propose_closing_beyond(1).await.unwrap().unwrap();
    assert!(ask(&nodes.stores[1], 0, &mut closing).await);
    nodes.stores[0]
        .create(Object::new(&ObjectKey::cluster(Kind::Member, "m")), author("x"))
        .await
        .unwrap();
    assert!(
        !nodes.stores[0].close_round(closing).await.unwrap(),
        "who has to agree has changed"
    );
    assert_eq!(nodes.stores[0].tombstones(), 1);
}

#[tokio::test]
async fn frames_from_before_a_round_was_closed_bring_nothing_back() {
    let mut nodes = Nodes::new(3);
    let view = create(&nodes.stores[0], "a").await;
    edit(&nodes.stores[0], &view.key, |object| {
        object.set(&["metadata", "labels", "x"], "1")
    })
    .await;
    nodes.keep_pushes();
    nodes.exchange_all().await;
    remove(&nodes.stores[1], &view.key).await;
    nodes.exchange_all().await;
    let before = nodes.frames.clone();
    assert!(nodes.close_and_tell(0, &ALL, 1).await);
    for (from, frame) in before {
        for (to, store) in nodes.stores.iter().enumerate().filter(|(to, _)| *to != from) {
            store.receive(&id(from), &frame).await.unwrap();
            assert!(store.get(&view.key).is_none(), "from {from} to {to}");
        }
    }
    nodes.exchange_all().await;
    nodes.assert_equal();
    assert_eq!(nodes.stores[0].tombstones(), 0);
}

#[tokio::test]
async fn tombstones_that_are_needed_stay() {
    let mut nodes = Nodes::new(3);
    let first = &nodes.stores[0];
    first.create(namespace("default"), author("x")).await.unwrap();
    let web = first.create(deployment("web"), author("x")).await.unwrap().key;
    let name = ObjectKey::cluster(Kind::Namespace, "default");
    let member = ObjectKey::cluster(Kind::Member, "gone");
    first.create(Object::new(&member), author("x")).await.unwrap();
    let b = create(first, "b").await;
    for key in [&name, &member, &b.key] {
        remove(first, key).await;
    }
    nodes.exchange_all().await;
    assert!(nodes.close_and_tell(0, &ALL, 1).await);
    nodes.assert_equal();
    for store in &nodes.stores {
        assert_eq!(store.tombstones(), 2);
        assert_eq!(store.orphaned_by_namespace(), std::slice::from_ref(&web));
        assert!(store.removal(&member).is_some());
    }
    remove(&nodes.stores[1], &web).await;
    nodes.exchange_all().await;
    assert!(nodes.close_and_tell(0, &ALL, 1).await);
    nodes.assert_equal();
    assert_eq!(nodes.stores[2].tombstones(), 1, "that of the member");
    assert!(!nodes.close(0, &ALL, 1).await, "nothing is left to drop");
}

#[tokio::test]
async fn a_joiner_catches_up_without_a_word() {
    let (mut nodes, views) = three(&["a", "b"]).await;
    remove(&nodes.stores[0], &views[0].key).await;
    nodes.exchange_all().await;
    assert!(nodes.close_and_tell(0, &ALL, 1).await);
    nodes.disks[2] = MemoryDisk::default();
    nodes.restart(2);
    nodes.exchange(1, 2).await;
    nodes.assert_equal();
    assert!(nodes.stores[2].get(&views[1].key).is_some());
    assert_eq!(nodes.stores[2].standing().borrow().taken_away, 0);
}

#[tokio::test]
async fn a_peer_that_cannot_read_an_object_does_not_make_others_drop_it() {
    let (mut nodes, views) = three(&["a", "b"]).await;
    remove(&nodes.stores[0], &views[0].key).await;
    nodes.exchange(0, 1).await;
    assert!(nodes.close_and_tell(0, &FIRST_TWO, 1).await);
    for at in 0..2 {
        nodes.disks[at].damage(&format!("d/{}", views[1].key));
        nodes.restart(at);
    }
    // The only copy that can be read is that of a node that was away.
    nodes.exchange(2, 0).await;
    nodes.exchange_all().await;
    nodes.exchange_all().await;
    nodes.assert_equal();
    for store in &nodes.stores {
        assert_eq!(
            store.get(&views[1].key).unwrap().object.uid(),
            views[1].object.uid()
        );
        assert!(store.get(&views[0].key).is_none());
    }
}

#[tokio::test]
async fn names_without_end_leave_few_tombstones() {
    let mut nodes = Nodes::new(3);
    let mut most = 0;
    for number in 0..4 * MANY {
        let store = &nodes.stores[number % 2];
        let view = create(store, &format!("n{number}")).await;
        remove(store, &view.key).await;
        if number % (MANY / 2) == 0 {
            nodes.exchange(0, 1).await;
            nodes.exchange(1, 2).await;
            nodes.exchange(2, 0).await;
            nodes.close_and_tell(0, &ALL, MANY).await;
            nodes.assert_equal();
            most = most.max(nodes.stores[0].tombstones());
        }
    }
    assert!(most <= 2 * MANY, "{most}");
    assert!(nodes.stores[0].floor() >= 2);
    let reopened = Store::open_in_memory(nodes.disks[0].after_power_loss(), options("node0")).unwrap();
    assert_eq!(reopened.tombstones(), nodes.stores[0].tombstones());
}

#[tokio::test]
async fn writes_go_on_while_rounds_are_closed() {
    let mut nodes = Nodes::new(1);
    let store = nodes.stores[0].clone();
    let written = std::cell::Cell::new(false);
    let write = async {
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..8 {
            let store = store.clone();
            writers.spawn(async move {
                for number in 0..30 {
                    let view = create(&store, &format!("w{writer}-{number}")).await;
                    edit(&store, &view.key, |object| {
                        object.set(&["metadata", "labels", "x"], "1")
                    })
                    .await;
                    if number % 2 == 0 {
                        remove(&store, &view.key).await;
                    }
                }
            });
        }
        writers.join_all().await;
        written.set(true);
    };
    let close = async {
        while !written.get() {
            nodes.close(0, &[true], 1).await;
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(write, close);
    assert!(store.floor() > 0);
    assert_eq!(store.list(Kind::Node, None).items.len(), 8 * 15);
    let floor = store.floor();
    let index = store.shared.index();
    assert!(index.tombstones().values().all(|removed| removed.laid >= floor));
}

#[tokio::test]
async fn what_another_of_a_later_round_replaces_is_set_aside_by_who_holds_it() {
    let mut nodes = Nodes::new(5);
    let a = create(&nodes.stores[0], "a").await;
    remove(&nodes.stores[0], &a.key).await;
    nodes.exchange_all().await;
    let made = create(&nodes.stores[4], "b").await;
    nodes.exchange(4, 3).await;
    assert!(
        nodes
            .close_and_tell(0, &[true, true, true, false, false], 1)
            .await
    );
    let stays = create(&nodes.stores[0], "b").await;
    // Its node never hears of this: it is removed before.
    nodes.exchange(0, 3).await;
    replaced_and_set_aside(&nodes.stores[3], &made, &stays);
}

fn replaced_and_set_aside(store: &Store, made: &View, stays: &View) {
    let held = store.get(&made.key).unwrap();
    assert_eq!(held.object.uid(), stays.object.uid());
    let rescued = store.rescued();
    let rescued: Vec<_> = rescued.iter().map(|one| (one.object.uid(), one.why)).collect();
    assert_eq!(rescued, [(made.object.uid(), Lost::Replaced)]);
}

#[tokio::test]
async fn what_is_in_a_namespace_that_two_made_stays() {
    let (mut nodes, views) = three(&["a"]).await;
    remove(&nodes.stores[0], &views[0].key).await;
    nodes.exchange_all().await;
    let second = &nodes.stores[1];
    let made = second.create(namespace("other"), author("x")).await.unwrap();
    let mut web = deployment("web");
    web.set(&["metadata", "namespace"], "other");
    let web = second.create(web, author("x")).await.unwrap();
    assert!(!nodes.close(0, &ALL, 1).await, "they differ");
    let stays = nodes.stores[0]
        .create(namespace("other"), author("y"))
        .await
        .unwrap();
    assert_ne!(stays.object.uid(), made.object.uid(), "it is of a later round");
    nodes.exchange_all().await;
    nodes.assert_equal();
    replaced_and_set_aside(&nodes.stores[1], &made, &stays);
    for store in &nodes.stores {
        assert!(store.get(&web.key).is_some());
        assert!(store.orphaned_by_namespace().is_empty());
    }
    // Whoever removes the one that stayed removes what was created in the other, too.
    remove(&nodes.stores[0], &stays.key).await;
    nodes.exchange_all().await;
    for store in &nodes.stores {
        assert_eq!(store.orphaned_by_namespace(), std::slice::from_ref(&web.key));
    }
}

#[tokio::test]
async fn what_is_made_after_a_deletion_is_not_deleted_by_that() {
    let mut nodes = Nodes::new(5);
    let a = create(&nodes.stores[0], "a").await;
    let b = create(&nodes.stores[0], "b").await;
    remove(&nodes.stores[0], &a.key).await;
    nodes.exchange_all().await;
    // Both sides delete it and make it anew, one of them in a later round.
    remove(&nodes.stores[4], &b.key).await;
    let made = create(&nodes.stores[4], "b").await;
    nodes.exchange(4, 3).await;
    assert!(
        nodes
            .close_and_tell(0, &[true, true, true, false, false], 1)
            .await
    );
    remove(&nodes.stores[0], &b.key).await;
    let stays = create(&nodes.stores[0], "b").await;
    nodes.exchange(0, 3).await;
    replaced_and_set_aside(&nodes.stores[3], &made, &stays);
}
