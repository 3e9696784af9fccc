//! Selectors: label selectors of objects, their text form (`-l app=web,tier!=db`), and field selectors.

use serde_json::Value;

use crate::{Kind, KindRow, Object, names};

/// Requirements on labels, all of which must hold. Without any, everything matches.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// A selector that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SelectorError {
    #[error("unable to parse requirement: `{0}`")]
    Syntax(String),
    #[error("key: Invalid value: \"{key}\": {problem}")]
    Key { key: String, problem: String },
    #[error("values: Invalid value: \"{value}\": {problem}")]
    Value { value: String, problem: String },
    #[error("operator: Invalid value: \"{0}\": not a valid selector operator")]
    Operator(String),
    #[error(
        "values: Required value: must be specified for `In` and `NotIn`, and be absent for `Exists` and `DoesNotExist`"
    )]
    Values,
    /// A field that objects of this kind cannot be selected by.
    #[error("field label not supported: {0}")]
    Field(String),
}

impl LabelSelector {
    /// Reads a `LabelSelector` (`matchLabels`, `matchExpressions`). An empty one matches everything.
    pub fn from_object(selector: &Value) -> Result<Self, SelectorError> {
        let mut result = Self::from_labels(&selector["matchLabels"])?;
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let text = |field: &str| expression[field].as_str().unwrap_or_default().to_owned();
            let operator = match text("operator").as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(SelectorError::Operator(other.to_owned())),
            };
            let values = expression["values"].as_array().into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            result
                .requirements
                .push(Requirement::new(text("key"), operator, values)?);
        }
        Ok(result)
    }

    /// Reads a plain map of labels, as `spec.selector` of a Service.
    pub fn from_labels(labels: &Value) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for (key, value) in labels.as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::new(key.clone(), Operator::In, vec![value])?);
        }
        Ok(Self { requirements })
    }

    /// Reads the text form: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b)`, `a`, `!a`, `a>1`, `a<1`, by commas.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        if !text.trim().is_empty() {
            for part in split_outside_parentheses(text) {
                requirements.push(parse_requirement(part.trim())?);
            }
        }
        Ok(Self { requirements })
    }

    /// Tells whether there are no requirements.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Tells whether labels match; `label` looks one up.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements
            .iter()
            .all(|requirement| requirement.holds(label(&requirement.key)))
    }

    /// Tells whether an object's labels match.
    pub fn matches_object(&self, object: &Object) -> bool {
        self.matches(|key| object.label(key))
    }
}

impl Requirement {
    fn new(key: String, operator: Operator, values: Vec<String>) -> Result<Self, SelectorError> {
        if let Some(problem) = names::qualified_name(&key) {
            return Err(SelectorError::Key { key, problem });
        }
        for value in &values {
            let problem = match operator {
                Operator::GreaterThan | Operator::LessThan if value.parse::<i64>().is_err() => {
                    Some("for 'Gt', 'Lt' operators, the value must be an integer".to_owned())
                }
                _ => names::label_value(value),
            };
            if let Some(problem) = problem {
                return Err(SelectorError::Value {
                    value: value.clone(),
                    problem,
                });
            }
        }
        let takes_values = !matches!(operator, Operator::Exists | Operator::DoesNotExist);
        if takes_values == values.is_empty() {
            return Err(SelectorError::Values);
        }
        Ok(Self {
            key,
            operator,
            values,
        })
    }

    fn holds(&self, label: Option<&str>) -> bool {
        let listed = |label: &str| self.values.iter().any(|value| value == label);
        let compare = |label: &str| {
            let bound = self.values.first()?.parse::<i64>().ok()?;
            Some(label.parse::<i64>().ok()?.cmp(&bound))
        };
        match self.operator {
            Operator::In => label.is_some_and(listed),
            Operator::NotIn => !label.is_some_and(listed),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan => label.and_then(compare).is_some_and(|order| order.is_gt()),
            Operator::LessThan => label.and_then(compare).is_some_and(|order| order.is_lt()),
        }
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut inside = false;
    text.split(|c| {
        inside = (inside || c == '(') && c != ')';
        c == ',' && !inside
    })
    .collect()
}

fn parse_requirement(text: &str) -> Result<Requirement, SelectorError> {
    let one = |key: &str, operator, value: &str| {
        Requirement::new(key.trim().to_owned(), operator, vec![value.trim().to_owned()])
    };
    if let Some(key) = text.strip_prefix('!') {
        return Requirement::new(key.trim().to_owned(), Operator::DoesNotExist, Vec::new());
    }
    if let Some((key, value)) = text.split_once("!=") {
        return one(key, Operator::NotIn, value);
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return one(key, Operator::In, value);
    }
    if let Some((key, value)) = text.split_once('>') {
        return one(key, Operator::GreaterThan, value);
    }
    if let Some((key, value)) = text.split_once('<') {
        return one(key, Operator::LessThan, value);
    }
    let Some((key, rest)) = text.split_once(char::is_whitespace) else {
        return Requirement::new(text.to_owned(), Operator::Exists, Vec::new());
    };
    let syntax = || SelectorError::Syntax(text.to_owned());
    let rest = rest.trim();
    let (operator, list) = match rest.strip_prefix("notin") {
        Some(list) => (Operator::NotIn, list),
        None => (Operator::In, rest.strip_prefix("in").ok_or_else(syntax)?),
    };
    let list = list
        .trim()
        .strip_prefix('(')
        .and_then(|list| list.strip_suffix(')'))
        .ok_or_else(syntax)?;
    let values = list.split(',').map(|value| value.trim().to_owned()).collect();
    Requirement::new(key.to_owned(), operator, values)
}

/// Requirements on fields (`--field-selector`), all of which must hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct FieldTerm {
    field: &'static str,
    equal: bool,
    value: String,
}

/// Fields that every kind can be selected by.
pub(crate) const COMMON_FIELDS: &[&str] = &["metadata.name", "metadata.namespace"];

/// Fields that a kind can be selected by, beside [`COMMON_FIELDS`].
pub(crate) fn fields_of(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Pod => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        Kind::Event => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        Kind::Node => &["spec.unschedulable"],
        Kind::Namespace => &["status.phase"],
        Kind::Service => &["spec.clusterIP", "spec.type"],
        Kind::Secret => &["type"],
        Kind::ReplicaSet | Kind::ReplicationController => &["status.replicas"],
        Kind::Job => &["status.successful"],
        Kind::Endpoints
        | Kind::Deployment
        | Kind::Ingress
        | Kind::EndpointSlice
        | Kind::ConfigMap
        | Kind::ServiceAccount
        | Kind::PersistentVolumeClaim
        | Kind::PersistentVolume
        | Kind::StorageClass
        | Kind::IngressClass
        | Kind::NetworkPolicy
        | Kind::PodDisruptionBudget
        | Kind::PriorityClass
        | Kind::Lease
        | Kind::StatefulSet
        | Kind::DaemonSet
        | Kind::PodTemplate
        | Kind::ControllerRevision
        | Kind::CronJob
        | Kind::Member
        | Kind::ApiToken
        | Kind::JoinToken
        | Kind::DnsWhitelist
        | Kind::GitInventory => &[],
    }
}

/// Fields that Events are selected by in their other group, and what these are called where Events are kept.
const FIELDS_OF_EVENTS: &[(&str, &str)] = &[
    ("regarding.kind", "involvedObject.kind"),
    ("regarding.namespace", "involvedObject.namespace"),
    ("regarding.name", "involvedObject.name"),
    ("regarding.uid", "involvedObject.uid"),
    ("regarding.apiVersion", "involvedObject.apiVersion"),
    ("regarding.resourceVersion", "involvedObject.resourceVersion"),
    ("regarding.fieldPath", "involvedObject.fieldPath"),
    ("reason", "reason"),
    ("reportingController", "reportingComponent"),
    ("source", "source"),
    ("type", "type"),
];

impl FieldSelector {
    /// Reads `field=value`, `field==value` and `field!=value`, by commas; `\` takes the meaning from `,`, `=` and `\`. The
    /// fields have the names that they have in the row's group; the selector is for objects as they are kept.
    pub fn parse(row: &KindRow, text: &str) -> Result<Self, SelectorError> {
        if row.is_own() {
            return Self::parse_known(fields_of(row.kind), text);
        }
        let fields: Vec<&str> = FIELDS_OF_EVENTS.iter().map(|(field, _)| *field).collect();
        let mut selector = Self::parse_known(&fields, text)?;
        for term in &mut selector.terms {
            let mut renamed = FIELDS_OF_EVENTS.iter();
            if let Some((_, kept)) = renamed.find(|(field, _)| *field == term.field) {
                term.field = kept;
            }
        }
        Ok(selector)
    }

    /// [`FieldSelector::parse`] for what has no kind in the table, and is selected by name and namespace alone.
    pub fn parse_metadata(text: &str) -> Result<Self, SelectorError> {
        Self::parse_known(&[], text)
    }

    fn parse_known(fields: &[&'static str], text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let at = term
                .find('=')
                .ok_or_else(|| SelectorError::Syntax(term.to_owned()))?;
            let (field, equal) = match term[..at].strip_suffix('!') {
                Some(field) => (field, false),
                None => (&term[..at], true),
            };
            let value = &term[at + 1..];
            let value = if equal {
                value.strip_prefix('=').unwrap_or(value)
            } else {
                value
            };
            let known = COMMON_FIELDS
                .iter()
                .chain(fields)
                .find(|known| **known == field.trim());
            let field = *known.ok_or_else(|| SelectorError::Field(field.to_owned()))?;
            terms.push(FieldTerm {
                field,
                equal,
                value: unescape(value.trim()),
            });
        }
        Ok(Self { terms })
    }

    /// Returns the text that a field must be equal to, if one is named.
    pub fn exactly(&self, field: &str) -> Option<&str> {
        let term = self.terms.iter().find(|term| term.field == field && term.equal)?;
        Some(&term.value)
    }

    /// Tells whether an object's fields match. A field that is not there is empty text, `false` or `0`.
    pub fn matches(&self, object: &Object) -> bool {
        self.terms.iter().all(|term| {
            let pointer = match term.field {
                "status.successful" => "/status/succeeded".to_owned(),
                field => format!("/{}", field.replace('.', "/")),
            };
            let absent = match term.field {
                "spec.hostNetwork" | "spec.unschedulable" => "false",
                "status.replicas" | "status.successful" => "0",
                _ => "",
            };
            let equal = match object.pointer(&pointer) {
                _ if term.field == "source" => source(object) == term.value,
                Some(Value::String(text)) => *text == term.value,
                None | Some(Value::Null) => term.value == absent,
                Some(other) => {
                    let text = other.to_string();
                    text == term.value
                }
            };
            equal == term.equal
        })
    }
}

/// Who saw an Event.
fn source(object: &Object) -> &str {
    match object.str_at("/source/component") {
        "" => object.str_at("/reportingComponent"),
        component => component,
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut escaped = false;
    text.split(|c| {
        let separates = c == ',' && !escaped;
        escaped = c == '\\' && !escaped;
        separates
    })
    .collect()
}

fn unescape(text: &str) -> String {
    let mut escaped = false;
    text.chars()
        .filter(|c| {
            escaped = *c == '\\' && !escaped;
            !escaped
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Object {
        Object::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"app": "web", "tier": "front", "n": "5"}},
            "status": {"phase": "Running"},
        }))
        .unwrap()
    }

    #[test]
    fn label_selectors_match_as_in_kubernetes() {
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web , tier=front", true),
            ("app!=web", false),
            ("missing!=x", true),
            ("app in (db, web)", true),
            ("app in (db)", false),
            ("app notin (db)", true),
            ("missing notin (db)", true),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("n>4", true),
            ("n<5", false),
            ("missing=", false),
            ("app in (a,b),tier", false),
        ] {
            assert_eq!(
                LabelSelector::parse(text).unwrap().matches_object(&pod()),
                expected,
                "{text}"
            );
        }
        for text in [
            "a b",
            "a in",
            "a in b",
            "=x",
            "a=b c",
            "a,,b",
            "n>x",
            "-a=b",
            "a within (b)",
        ] {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
        let selector = json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["front", "back"]}, {"key": "x", "operator": "DoesNotExist"}],
        });
        assert!(
            LabelSelector::from_object(&selector)
                .unwrap()
                .matches_object(&pod())
        );
        let bad = json!({"matchExpressions": [{"key": "tier", "operator": "In"}]});
        assert_eq!(LabelSelector::from_object(&bad), Err(SelectorError::Values));
    }

    #[test]
    fn field_selectors_know_their_kinds_fields() {
        for (text, expected) in [
            ("", true),
            ("metadata.name=web-1", true),
            ("metadata.name==web-1,status.phase!=Pending", true),
            ("spec.nodeName=", true),
            ("spec.nodeName!=", false),
            ("spec.hostNetwork=false", true),
            ("status.phase=a\\,b", false),
        ] {
            assert_eq!(
                FieldSelector::parse(Kind::Pod.row(), text)
                    .unwrap()
                    .matches(&pod()),
                expected,
                "{text}"
            );
        }
        assert_eq!(
            FieldSelector::parse(Kind::Deployment.row(), "spec.nodeName=x")
                .unwrap_err()
                .to_string(),
            "field label not supported: spec.nodeName"
        );
        assert!(FieldSelector::parse(Kind::Pod.row(), "metadata.name").is_err());
    }

    #[test]
    fn events_are_selected_by_the_names_of_either_group() {
        let event = |component: &str| {
            Object::from_value(json!({
                "apiVersion": "v1", "kind": "Event", "metadata": {"name": "web.1", "namespace": "shop"},
                "involvedObject": {"kind": "Pod", "name": "web-1", "namespace": "shop", "uid": "u", "apiVersion": "v1",
                    "resourceVersion": "7", "fieldPath": "spec"},
                "reason": "Pulled", "type": "Normal", "reportingComponent": "puller",
                "source": {"component": component},
            }))
            .unwrap()
        };
        let newer = crate::FACES.iter().find(|row| row.kind == Kind::Event).unwrap();
        let check = |row: &KindRow, text: &str, expected: Option<bool>| {
            let found = FieldSelector::parse(row, text).map(|selector| selector.matches(&event("")));
            assert_eq!(found.ok(), expected, "{} {text}", row.group);
        };
        for (of_row, about, reporter) in [
            (Kind::Event.row(), "involvedObject", "reportingComponent"),
            (newer, "regarding", "reportingController"),
        ] {
            for (field, value) in [
                ("kind", "Pod"),
                ("name", "web-1"),
                ("namespace", "shop"),
                ("uid", "u"),
                ("apiVersion", "v1"),
                ("resourceVersion", "7"),
                ("fieldPath", "spec"),
            ] {
                check(of_row, &format!("{about}.{field}={value}"), Some(true));
                check(of_row, &format!("{about}.{field}!={value}"), Some(false));
            }
            check(
                of_row,
                &format!("{reporter}=puller,metadata.name=web.1"),
                Some(true),
            );
            check(
                of_row,
                "reason=Pulled,type!=Warning,metadata.namespace=shop",
                Some(true),
            );
            // Who reports is the source of what has no other.
            check(of_row, "source=puller", Some(true));
            let kubelet = FieldSelector::parse(of_row, "source=kubelet").unwrap();
            assert!(kubelet.matches(&event("kubelet")));
        }
        check(newer, "involvedObject.name=web-1", None);
        check(newer, "reportingComponent=puller", None);
        check(Kind::Event.row(), "regarding.name=web-1", None);
    }
}
