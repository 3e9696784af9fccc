//! `metadata.managedFields`: what is shown, and what clients make of it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::json;

use super::generated::{any_kind, small_object};
use super::properties::cases;
use super::*;
use crate::document::{Birth, Contents};
use crate::field_set::fields_of;
use crate::leaves::{self, Leaves};
use crate::managed;
use crate::owners::{Operation, Owner, Owners};

fn fields(view: &View) -> Value {
    let text = view.managed.as_deref().unwrap_or("null");
    serde_json::from_str(text).unwrap()
}

/// Manager and operation of each entry.
fn managers(view: &View) -> Vec<String> {
    let fields = fields(view);
    let entries = fields.as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    entries
        .map(|entry| text(&entry["operation"]) + " " + &text(&entry["manager"]))
        .collect()
}

/// An edit by a client that sees `managedFields`.
async fn edit_all(store: &Store, key: &ObjectKey, change: impl Fn(&mut Object) + Send + Sync) -> View {
    let any = Precondition::default();
    let changed = |object: &Object| {
        let mut changed = object.clone();
        change(&mut changed);
        Ok(changed)
    };
    let result: Result<View, WriteError> = store
        .update_with_managed_fields(key, &any, author("test"), changed)
        .await;
    result.unwrap()
}

async fn assign(store: &Store, key: &ObjectKey, said: Value) -> View {
    edit_all(store, key, |object| {
        object.set(&["metadata", "managedFields"], said.clone())
    })
    .await
}

fn config(data: Value) -> Object {
    object(json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "a", "namespace": "default"}, "data": data}))
}

async fn apply(store: &Store, manager: &str, data: Value) -> Result<View, WriteError> {
    let applied = store.apply(config(data), author(manager), false).await;
    applied.map(|applied| applied.view)
}

#[tokio::test]
async fn entries_tell_who_owns_what_applies_first() {
    let store = store("a");
    let view = store
        .create(config(json!({"a": "1", "b": "2"})), author("maker"))
        .await
        .unwrap();
    assert_eq!(
        view.managed.as_deref(),
        Some(
            r#"[{"manager":"maker","operation":"Update","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:data":{"f:a":{},"f:b":{}}}}]"#
        )
    );
    let edited = edit(&store, &view.key, |object| object.set(&["data", "b"], "3")).await;
    assert_eq!(managers(&edited), ["Update maker", "Update test"]);
    let applied = apply(&store, "z", json!({"b": "3", "c": "4"})).await.unwrap();
    assert_eq!(managers(&applied), ["Apply z", "Update maker", "Update test"]);
    assert_eq!(
        fields(&applied)[0]["fieldsV1"],
        json!({"f:data": {"f:b": {}, "f:c": {}}})
    );
    assert_eq!(applied.object.pointer("/metadata/managedFields"), None);
    assert_eq!(fields(&store.get(&view.key).unwrap()), fields(&applied));
}

#[tokio::test]
async fn who_comes_to_own_a_field_makes_a_new_version() {
    let store = store("a");
    let first = apply(&store, "a", json!({"a": "1"})).await.unwrap();
    let second = apply(&store, "b", json!({"a": "1"})).await.unwrap();
    assert!(second.revision > first.revision);
    assert_eq!(managers(&second), ["Apply a", "Apply b"]);
    let same = apply(&store, "b", json!({"a": "1"})).await.unwrap();
    assert_eq!(same.revision, second.revision);
}

#[tokio::test]
async fn what_a_client_side_apply_owned_can_be_given_to_a_server_side_apply() {
    let store = store("a");
    let made = config(json!({"a": "1", "b": "2", "other": "x"}));
    let view = store.create(made, author("client")).await.unwrap();
    edit(&store, &view.key, |object| object.set(&["data", "other"], "y")).await;
    let applied = apply(&store, "server", json!({"a": "1"})).await.unwrap();
    assert_eq!(
        managers(&applied),
        ["Apply server", "Update client", "Update test"]
    );
    // As csaupgrade does: the union of both.
    let mut said = fields(&applied);
    said[0]["fieldsV1"] = json!({"f:data": {"f:a": {}, "f:b": {}}});
    said.as_array_mut().unwrap().remove(1);
    let moved = assign(&store, &view.key, said.clone()).await;
    assert_eq!(fields(&moved), said);
    assert_eq!(moved.object.generation(), applied.object.generation());
    let applied = apply(&store, "server", json!({"a": "1"})).await.unwrap();
    assert_eq!(applied.object.0["data"], json!({"a": "1", "other": "y"}));
}

#[tokio::test]
async fn what_nobody_is_said_to_own_is_free() {
    let store = store("a");
    let view = apply(&store, "a", json!({"a": "1", "b": "2"})).await.unwrap();
    let mut said = fields(&view);
    said[0]["fieldsV1"] = json!({"f:data": {"f:b": {}}});
    let given_up = assign(&store, &view.key, said.clone()).await;
    assert_eq!(fields(&given_up), said);
    // No conflict, and who named it does not drop it.
    let taken = apply(&store, "b", json!({"a": "3"})).await.unwrap();
    assert_eq!(managers(&taken), ["Apply a", "Apply b"]);
    let refused = apply(&store, "c", json!({"b": "3"})).await;
    assert!(matches!(refused, Err(WriteError::Owned { .. })), "{refused:?}");
}

#[tokio::test]
async fn managed_fields_can_be_reset() {
    for reset in [json!([]), json!([{}]), json!([{"manager": "", "time": null}])] {
        let store = store("a");
        let view = apply(&store, "a", json!({"a": "1", "b": "2"})).await.unwrap();
        let empty = assign(&store, &view.key, reset.clone()).await;
        assert_eq!(fields(&empty), Value::Null, "{reset}");
        let refused = apply(&store, "a", json!({"a": "2"})).await;
        let Err(WriteError::Owned { fields, .. }) = refused else {
            panic!("{refused:?}")
        };
        let others: Vec<_> = fields.iter().map(|field| field.manager.as_str()).collect();
        assert_eq!(others, ["before-first-apply"]);
        let applied = apply(&store, "a", json!({"a": "1"})).await.unwrap();
        assert_eq!(managers(&applied), ["Apply a", "Update before-first-apply"]);
        assert_eq!(applied.object.0["data"], json!({"a": "1", "b": "2"}));
    }
}

#[tokio::test]
async fn what_cannot_be_understood_changes_nothing() {
    let store = store("a");
    let view = apply(&store, "a", json!({"a": "1"})).await.unwrap();
    let entry = fields(&view)[0].clone();
    let with = |field: &str, value: Value| {
        let mut entry = entry.clone();
        entry[field] = value;
        json!([entry])
    };
    for said in [
        Value::Null,
        json!("x"),
        json!([1]),
        json!([null]),
        json!([{}, {}]),
        with("operation", json!("Own")),
        with("apiVersion", json!("")),
        with("fieldsType", json!("FieldsV2")),
        with("fieldsV1", json!({"a": {}})),
        with("fieldsV1", json!("f:a")),
        with("manager", json!("x".repeat(1025))),
        Value::from(vec![entry.clone(); 65]),
    ] {
        let after = assign(&store, &view.key, said.clone()).await;
        assert_eq!(after.managed, view.managed, "{said}");
        assert_eq!(after.revision, view.revision, "{said}");
    }
}

#[tokio::test]
async fn an_edit_beside_managed_fields_is_owned_by_who_made_it() {
    let store = store("a");
    let view = apply(&store, "a", json!({"a": "1", "b": "2"})).await.unwrap();
    let after = edit_all(&store, &view.key, |object| {
        object.set(&["data", "b"], "3");
        object.remove(&["metadata", "managedFields"]);
    })
    .await;
    assert_eq!(managers(&after), ["Apply a", "Update test"], "none is as before");
    let reset = edit_all(&store, &view.key, |object| {
        object.set(&["data", "c"], "3");
        object.set(&["metadata", "managedFields"], json!([]));
    })
    .await;
    assert_eq!(managers(&reset), ["Update test"]);
}

#[tokio::test]
async fn what_was_reset_is_so_on_other_nodes_and_after_a_restart() {
    let disk = MemoryDisk::default();
    let (here, there) = (
        Store::open_in_memory(disk.clone(), options("a")).unwrap(),
        store("b"),
    );
    let view = apply(&here, "a", json!({"a": "1"})).await.unwrap();
    exchange(&here, &there).await;
    assert_eq!(there.get(&view.key).unwrap().managed, view.managed);
    assign(&here, &view.key, json!([])).await;
    exchange(&here, &there).await;
    assert_eq!(there.get(&view.key).unwrap().managed, None);
    here.close().await;
    let again = Store::open_in_memory(disk, options("a")).unwrap();
    assert_eq!(again.get(&view.key).unwrap().managed, None);
}

#[tokio::test]
async fn who_writes_through_a_subresource_owns_apart() {
    let (here, there) = (store("here"), store("there"));
    let made = here.create(config(json!({"a": "1", "b": "1", "c": "1"})), author("m"));
    let key = made.await.unwrap().key;
    for (manager, field) in [("m/status", "b"), ("m/scale", "c")] {
        let changed = |object: &Object| -> Result<Object, WriteError> {
            let mut changed = object.clone();
            changed.set(&["data", field], "2");
            Ok(changed)
        };
        here.update(&key, &Precondition::default(), author(manager), changed)
            .await
            .unwrap();
    }
    apply(&here, "m/scale", json!({"c": "2"})).await.unwrap();
    exchange(&here, &there).await;
    let view = there.get(&key).unwrap();
    let entries = fields(&view);
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or("-").to_owned();
    let entries: Vec<String> = entries
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| {
            let [operation, manager, part] =
                ["operation", "manager", "subresource"].map(|field| text(entry, field));
            format!("{operation} {manager} {part} {}", entry["fieldsV1"]["f:data"])
        })
        .collect();
    assert_eq!(
        entries,
        [
            r#"Apply m scale {"f:c":{}}"#,
            r#"Update m - {"f:a":{}}"#,
            r#"Update m scale {"f:c":{}}"#,
            r#"Update m status {"f:b":{}}"#,
        ]
    );
    let mut said = fields(&view);
    said.as_array_mut().unwrap().remove(0);
    let assigned = assign(&there, &key, said.clone()).await;
    assert_eq!(fields(&assigned), said);
    let mut confused = said.clone();
    confused[0]["manager"] = "m/scale".into();
    assert_eq!(fields(&assign(&there, &key, confused).await), said);
}

#[tokio::test]
async fn many_who_update_become_one() {
    let (here, there) = (store("here"), store("there"));
    let data: serde_json::Map<String, Value> = (0..40)
        .map(|number| (format!("k{number:02}"), "1".into()))
        .collect();
    let view = here.create(config(data.into()), author("maker")).await.unwrap();
    let set = async |manager: &str, names: &[String]| {
        let changed = |object: &Object| -> Result<Object, WriteError> {
            let mut changed = object.clone();
            for name in names {
                changed.set(&["data", name], manager);
            }
            Ok(changed)
        };
        let any = Precondition::default();
        here.update(&view.key, &any, author(manager), changed)
            .await
            .unwrap()
    };
    // The first own the most.
    for number in 0..9_usize {
        let names: Vec<String> = (0..3).map(|key| format!("k{:02}", 3 * number + key)).collect();
        let names = if number < 5 { &names[..] } else { &names[..1] };
        set(&format!("m{number}"), names).await;
    }
    assert_eq!(managers(&here.get(&view.key).unwrap()).len(), 10);
    let after = set("last", &["k39".to_owned()]).await;
    let expected = [
        "ancient-changes",
        "last",
        "m0",
        "m1",
        "m2",
        "m3",
        "m4",
        "m7",
        "m8",
        "maker",
    ];
    assert_eq!(
        managers(&after),
        expected.map(|manager| format!("Update {manager}"))
    );
    assert_eq!(
        fields(&after)[0]["fieldsV1"],
        json!({"f:data": {"f:k15": {}, "f:k18": {}}})
    );
    // There is one for all that follow, and it is the one of other nodes.
    for number in 0..20 {
        let after = set(&format!("x{number}"), &["k38".to_owned()]).await;
        assert!(managers(&after).len() <= 10, "{:?}", managers(&after));
    }
    exchange(&here, &there).await;
    assert_eq!(
        there.get(&view.key).unwrap().managed,
        here.get(&view.key).unwrap().managed
    );
    let refused = here
        .apply(config(json!({"k15": "2"})), author("git"), false)
        .await;
    let Err(WriteError::Owned { fields, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(fields[0].manager, "ancient-changes");
}

#[tokio::test]
async fn what_is_shown_of_owners_does_not_grow_without_bound() {
    let store = store("a");
    let name = "n".repeat(240);
    let data: serde_json::Map<String, Value> = (0..1000)
        .map(|number| (format!("{name}{number}"), "".into()))
        .collect();
    let mut most = 0;
    let mut refused = None;
    for number in 0..16 {
        match apply(&store, &format!("m{number}"), data.clone().into()).await {
            Ok(view) => most = view.managed.unwrap().len(),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    assert!((1 << 20..=2 << 20).contains(&most), "{most}");
    let Some(WriteError::Invalid { reason, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(
        reason.starts_with("metadata.managedFields would have 2")
            && reason.contains("at most 2097152 are kept"),
        "{reason}"
    );
    // Who owns already changes values, and whoever gives up owners makes room.
    let mut fewer = data.clone();
    fewer.remove(&format!("{name}7"));
    apply(&store, "m0", fewer.into()).await.unwrap();
    let key = config(json!({})).key().unwrap();
    assign(&store, &key, json!([{}])).await;
    apply(&store, "new", json!({"a": "1"})).await.unwrap();
}

#[tokio::test]
async fn what_kubectl_applies_is_written_down_where_its_client_side_applies_did() {
    let store = store("a");
    let annotation = schemas::meta::LAST_APPLIED;
    let last = |view: &View| view.object.annotation(annotation).map(str::to_owned);
    let of = |data: Value, note: &str| {
        let mut object = config(data);
        object.set(&["metadata", "annotations", "note"], note);
        object
    };
    let applied = async |manager: &str, object: Object| {
        let applied = store.apply(object, author(manager), true).await.unwrap();
        applied.view
    };
    let view = applied("kubectl", of(json!({"a": "1"}), "x")).await;
    assert_eq!(last(&view), None);
    let key = view.key;
    edit(&store, &key, |object| {
        object.set(&["metadata", "annotations", annotation], "old")
    })
    .await;
    let view = applied("git", of(json!({"b": "1"}), "x")).await;
    assert_eq!(last(&view).as_deref(), Some("old"));
    let view = applied("kubectl", of(json!({"b": "1", "a": "2"}), "x")).await;
    let expected = r#"{"apiVersion":"v1","data":{"a":"2","b":"1"},"kind":"ConfigMap","metadata":{"annotations":{"note":"x"},"name":"a","namespace":"default"}}"#;
    assert_eq!(last(&view), Some(format!("{expected}\n")));
    assert_eq!(managers(&view), ["Apply git", "Apply kubectl", "Update test"]);
    let again = applied("kubectl", of(json!({"a": "2", "b": "1"}), "x")).await;
    assert_eq!(again.revision, view.revision);
    // Too large with the others: it says nothing then, rather than something old.
    let note = "n".repeat(200 << 10);
    let view = applied("kubectl", of(json!({"a": "2"}), &note)).await;
    assert_eq!(last(&view), None);
}

fn owner() -> impl Strategy<Value = BTreeSet<Owner>> {
    let one = (
        any::<bool>(),
        prop::sample::select(vec!["a", "b/c", "ключ", "a/status", "b/c/scale"]),
    )
        .prop_map(|(applies, manager)| {
            let operation = if applies {
                Operation::Apply
            } else {
                Operation::Update
            };
            Owner::new(operation, manager)
        });
    prop::collection::btree_set(one, 1..4)
}

proptest! {
    #![proptest_config(cases(128))]

    /// What is shown, sent back, says the same.
    #[test]
    fn managed_fields_survive_a_client(
        (kind, object) in any_kind().prop_flat_map(|kind| (Just(kind), small_object(kind))),
        drawn in prop::collection::vec(owner(), 1..8),
    ) {
        let leaves = leaves::flatten(kind, &object, &Leaves::new());
        let mut owners = Owners { creators: drawn[0].clone(), ..Owners::default() };
        for (path, owner) in leaves.keys().zip(drawn.iter().cycle()) {
            owners.set(path, owner.clone());
        }
        let mut steps: BTreeMap<Vec<String>, BTreeSet<String>> = BTreeMap::new();
        fields_of(kind, &leaves, &mut |leaf, path| {
            steps.entry(path.to_vec()).or_default().insert(leaf.to_owned());
        });
        let mut contents = Contents { leaves, owners, birth: Birth::default(), ..Contents::default() };
        let shown = managed::shown(kind, &contents);
        let said = serde_json::from_str(shown.as_deref().unwrap_or("[]")).unwrap();
        let assigned = managed::assigned(kind, &contents.leaves, &contents.owners, &said).unwrap();
        // Elements of one key, and what is one value with its element, cannot be told apart.
        let is_shared = |leaf: &String| steps.values().any(|leaves| leaves.len() > 1 && leaves.contains(leaf));
        for leaf in steps.values().flatten() {
            prop_assert!(contents.owners.of(leaf).is_subset(assigned.of(leaf)), "{}", leaf);
            prop_assert!(is_shared(leaf) || contents.owners.of(leaf) == assigned.of(leaf), "{}", leaf);
        }
        if steps.values().all(|leaves| leaves.len() == 1) {
            contents.owners = assigned;
            prop_assert_eq!(managed::shown(kind, &contents), shown);
        }
    }

    #[test]
    fn any_value_as_managed_fields_is_read_or_left_alone(said in super::generated::odd_value()) {
        let leaves = leaves::flatten(Kind::ConfigMap, &config(json!({"a": "1"})), &Leaves::new());
        let _ = managed::assigned(Kind::ConfigMap, &leaves, &Owners::default(), &said);
        let _ = managed::assigned(Kind::ConfigMap, &leaves, &Owners::default(), &json!([said.clone()]));
        let _ = crate::field_set::FieldSet::parse(&said);
    }
}

#[tokio::test]
async fn who_says_only_who_owns_what_undoes_nothing_of_others() {
    for said in [
        json!([]),
        json!([{"manager": "m", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {"f:a": {}, "f:b": {}, "f:c": {}}}}]),
    ] {
        let (here, there) = (store("here"), store("there"));
        let made = here
            .create(config(json!({"a": "1", "b": "1", "c": "1"})), author("x"))
            .await
            .unwrap();
        exchange(&here, &there).await;
        assign(&here, &made.key, said.clone()).await;
        edit_all(&there, &made.key, |object| {
            object.set(&["data", "a"], "2");
            object.remove(&["data", "b"]);
        })
        .await;
        exchange(&here, &there).await;
        for store in [&here, &there] {
            let data = store.get(&made.key).unwrap().object.pointer("/data").cloned();
            assert_eq!(data, Some(json!({"a": "2", "c": "1"})), "{said}");
        }
        // Nor does the first apply that comes after.
        let other = store_of_apply(&here, &there, &made.key).await;
        assert_eq!(other, Some(json!({"a": "3", "c": "1", "d": "4"})), "{said}");
    }
}

/// What is there after one node applied a field that nobody had and another changed one, at once.
async fn store_of_apply(here: &Store, there: &Store, key: &ObjectKey) -> Option<Value> {
    apply(here, "late", json!({"d": "4"})).await.unwrap();
    edit_all(there, key, |object| object.set(&["data", "a"], "3")).await;
    exchange(here, there).await;
    there.get(key).unwrap().object.pointer("/data").cloned()
}
