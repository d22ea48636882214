//! Decides whether labels are selected: Kubernetes's label selector, read whole or refused.
//! Trusts nothing. Never takes an operator that it does not know for one that matches.

use serde::Deserialize;

use super::facts::Labels;

/// `metav1.LabelSelector`. An empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct LabelSelector {
    #[serde(default)]
    match_labels: Labels,
    #[serde(default)]
    match_expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expression {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl LabelSelector {
    /// Whether the expressions have the values that their operators want; else which does not.
    pub(super) fn check(&self) -> Result<(), &str> {
        let is_whole = |one: &&Expression| match one.operator {
            Operator::In | Operator::NotIn => !one.values.is_empty(),
            Operator::Exists | Operator::DoesNotExist => one.values.is_empty(),
        };
        match self.match_expressions.iter().find(|one| !is_whole(one)) {
            Some(odd) => Err(&odd.key),
            None => Ok(()),
        }
    }

    /// Whether these labels are selected.
    pub(super) fn selects(&self, labels: &Labels) -> bool {
        let equal = |(key, value)| labels.get(key) == Some(value);
        self.match_labels.iter().all(equal)
            && self.match_expressions.iter().all(|one| one.selects(labels))
    }
}

impl Expression {
    fn selects(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            // As in Kubernetes, what has no such label is not in the list.
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn selects(selector: serde_json::Value, labels: &[(&str, &str)]) -> bool {
        let selector: LabelSelector = serde_json::from_value(selector).unwrap();
        selector.check().unwrap();
        let labels = labels
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        selector.selects(&labels)
    }

    #[test]
    fn labels_are_selected_as_kubernetes_does() {
        let red = [("color", "red")];
        assert!(selects(json!({}), &red));
        assert!(selects(json!({ "matchLabels": { "color": "red" } }), &red));
        assert!(!selects(
            json!({ "matchLabels": { "color": "red", "size": "1" } }),
            &red
        ));
        for (operator, values, with, without) in [
            ("In", json!(["red", "blue"]), true, false),
            ("In", json!(["blue"]), false, false),
            ("NotIn", json!(["red"]), false, true),
            ("NotIn", json!(["blue"]), true, true),
            ("Exists", json!([]), true, false),
            ("DoesNotExist", json!([]), false, true),
        ] {
            let one = json!({ "matchExpressions": [{ "key": "color", "operator": operator, "values": values }] });
            assert_eq!(selects(one.clone(), &red), with, "{one}");
            assert_eq!(selects(one.clone(), &[]), without, "{one}");
        }
    }

    #[test]
    fn an_expression_that_is_not_whole_is_refused() {
        for odd in [
            json!({ "key": "a", "operator": "Gt", "values": ["1"] }),
            json!({ "key": "a", "operator": "In", "value": "x" }),
            json!({ "operator": "Exists" }),
        ] {
            let read =
                serde_json::from_value::<LabelSelector>(json!({ "matchExpressions": [odd] }));
            assert!(read.is_err());
        }
        for odd in [
            json!({ "key": "a", "operator": "In" }),
            json!({ "key": "a", "operator": "Exists", "values": ["1"] }),
        ] {
            let read: LabelSelector =
                serde_json::from_value(json!({ "matchExpressions": [odd] })).unwrap();
            assert_eq!(read.check(), Err("a"));
        }
    }
}
