//! Fractional indexes: the order of list elements as text that always has room between two. Pure.
//!
//! An index is a base-62 fraction without its `0.` and without trailing zeros; text order is number order.

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The longest index: one digit holds 5.9 bits, so this is some 1,500 insertions at the worst place; then the list is
/// numbered anew.
pub(crate) const MAX_ORDER_BYTES: usize = 256;

/// Tells whether a text is an index.
pub(crate) fn is_valid(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_ORDER_BYTES
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && !text.ends_with('0')
}

/// Gives every element of a list an index, in the wanted order, and leaves as many as it can as they are. Elements with
/// equal indexes are ordered by `name`.
pub(crate) fn assign(elements: &[(&str, Option<&str>)]) -> Vec<String> {
    let assigned = fill(elements, &longest_increasing(elements));
    if assigned.iter().all(|index| index.len() <= MAX_ORDER_BYTES) {
        return assigned;
    }
    fill(elements, &[])
}

/// Keeps the indexes of `anchors` and makes new ones for the rest.
fn fill(elements: &[(&str, Option<&str>)], anchors: &[usize]) -> Vec<String> {
    let mut assigned: Vec<String> = vec![String::new(); elements.len()];
    let mut next = 0;
    let mut low: Option<&str> = None;
    for anchor in anchors {
        let Some(high) = elements[*anchor].1 else { continue };
        let gap = *anchor - next;
        // Between equal indexes (of elements added at once on two nodes) there is no room: this one moves too.
        if gap > 0 && low.is_some_and(|low| low >= high) {
            continue;
        }
        spread(low, Some(high), &mut assigned[next..*anchor]);
        assigned[*anchor] = high.to_owned();
        next = *anchor + 1;
        low = Some(high);
    }
    spread(low, None, &mut assigned[next..]);
    assigned
}

/// Fills `slots` with ascending indexes between two, as short as halving makes them.
fn spread(low: Option<&str>, high: Option<&str>, slots: &mut [String]) {
    if slots.is_empty() {
        return;
    }
    let middle = slots.len() / 2;
    let index = between(low.unwrap_or_default(), high);
    let (left, right) = slots.split_at_mut(middle);
    spread(low, Some(&index), left);
    spread(Some(&index), high, &mut right[1..]);
    right[0] = index;
}

/// Returns an index between two; `low < high`.
fn between(low: &str, high: Option<&str>) -> String {
    let digit = |text: &str, at: usize| {
        let byte = text.as_bytes().get(at)?;
        DIGITS.iter().position(|digit| digit == byte)
    };
    let mut result = String::new();
    let mut high = high;
    for at in 0.. {
        let least = digit(low, at).unwrap_or(0);
        let most = high.map_or(DIGITS.len(), |high| digit(high, at).unwrap_or(0));
        if most > least + 1 {
            result.push(char::from(DIGITS[usize::midpoint(least, most)]));
            break;
        }
        result.push(char::from(DIGITS[least]));
        if most > least {
            // One digit below the upper bound: all that follows the lower bound is below it.
            high = None;
        }
        if at > MAX_ORDER_BYTES {
            break;
        }
    }
    result
}

/// Returns the positions of a longest run that is ascending already.
fn longest_increasing(elements: &[(&str, Option<&str>)]) -> Vec<usize> {
    let rank = |at: usize| elements[at].1.map(|order| (order, elements[at].0));
    let mut tails: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = vec![None; elements.len()];
    for (at, before) in before.iter_mut().enumerate() {
        let Some(mine) = rank(at) else { continue };
        let place = tails.partition_point(|tail| rank(*tail) < Some(mine));
        *before = place.checked_sub(1).and_then(|place| tails.get(place).copied());
        if place == tails.len() {
            tails.push(at);
        } else {
            tails[place] = at;
        }
    }
    let mut run = Vec::with_capacity(tails.len());
    let mut at = tails.last().copied();
    while let Some(position) = at {
        run.push(position);
        at = before[position];
    }
    run.reverse();
    run
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sorted(elements: &[(&str, Option<&str>)], assigned: &[String]) -> bool {
        let ranks: Vec<_> = assigned
            .iter()
            .zip(elements)
            .map(|(index, element)| (index, element.0))
            .collect();
        ranks.is_sorted() && assigned.iter().all(|index| is_valid(index))
    }

    #[test]
    fn keeps_what_is_in_order() {
        let first = assign(&[("a", None), ("b", None), ("c", None)]);
        let inserted = assign(&[
            ("a", Some(&first[0])),
            ("x", None),
            ("b", Some(&first[1])),
            ("c", Some(&first[2])),
        ]);
        assert_eq!(
            [&inserted[0], &inserted[2], &inserted[3]],
            [&first[0], &first[1], &first[2]]
        );
        assert!(inserted[0] < inserted[1] && inserted[1] < inserted[2]);
    }

    #[test]
    fn a_thousand_elements_stay_short() {
        let names: Vec<String> = (0..1000).map(|number| format!("{number:04}")).collect();
        let elements: Vec<_> = names.iter().map(|name| (name.as_str(), None)).collect();
        assert!(assign(&elements).iter().all(|index| index.len() <= 4));
    }

    proptest! {
        #[test]
        fn any_order_can_be_assigned(
            lists in prop::collection::vec(prop::collection::vec(0..12_usize, 0..12), 1..12),
            tie in any::<bool>(),
        ) {
            let names: Vec<String> = (0..12).map(|number| format!("n{number:02}")).collect();
            let mut known: std::collections::BTreeMap<usize, String> = Default::default();
            if tie {
                known.extend((0..6).map(|number| (number, "V".to_owned())));
            }
            for list in lists {
                let mut seen = std::collections::BTreeSet::new();
                let list: Vec<usize> = list.into_iter().filter(|number| seen.insert(*number)).collect();
                let elements: Vec<_> = list
                    .iter()
                    .map(|number| (names[*number].as_str(), known.get(number).map(String::as_str)))
                    .collect();
                let assigned = assign(&elements);
                prop_assert!(sorted(&elements, &assigned), "{elements:?} {assigned:?}");
                for (number, index) in list.iter().zip(assigned) {
                    known.insert(*number, index);
                }
            }
        }
    }
}
