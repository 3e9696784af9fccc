//! The schedules of CronJobs: five fields (`*/5 9-17 * * mon-fri`), a word (`@daily`), or `@every` and a duration.
//!
//! Source of the syntax: `ParseStandard` of `github.com/robfig/cron/v3`, which Kubernetes reads them with.

/// A field of a schedule: its name, and its least and greatest value.
struct Field {
    name: &'static str,
    range: (u32, u32),
    /// Names of the values from the least on.
    names: &'static [&'static str],
}

const MONTHS: &[&str] = &[
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const WORDS: &[&str] = &[
    "@yearly",
    "@annually",
    "@monthly",
    "@weekly",
    "@daily",
    "@midnight",
    "@hourly",
];

const FIELDS: [Field; 5] = [
    field("minute", (0, 59), &[]),
    field("hour", (0, 23), &[]),
    field("day of month", (1, 31), &[]),
    field("month", (1, 12), MONTHS),
    field("day of week", (0, 6), DAYS),
];

const fn field(name: &'static str, range: (u32, u32), names: &'static [&'static str]) -> Field {
    Field { name, range, names }
}

/// Returns what is wrong with a schedule, or None.
pub(crate) fn check(schedule: &str) -> Option<String> {
    if schedule.contains("TZ") {
        return Some("cannot use TZ or CRON_TZ in schedule, use timeZone field instead".to_owned());
    }
    if let Some(duration) = schedule.strip_prefix("@every ") {
        let problem = format!("failed to parse duration {schedule}: a number and a unit, as in @every 1h30m");
        return (!is_duration(duration.trim())).then_some(problem);
    }
    if schedule.starts_with('@') {
        let problem = format!("unrecognized descriptor: {schedule}");
        return (!WORDS.contains(&schedule)).then_some(problem);
    }
    let words: Vec<&str> = schedule.split_whitespace().collect();
    if words.len() != FIELDS.len() {
        return Some(format!(
            "expected exactly {} fields, found {}: {schedule}",
            FIELDS.len(),
            words.len()
        ));
    }
    let mut parts = FIELDS
        .iter()
        .zip(words)
        .flat_map(|(field, word)| word.split(',').map(move |part| (field, part)));
    parts.find_map(|(field, part)| field.check(part))
}

impl Field {
    /// Checks `*`, `n`, `n-m` and `n/step`, as they are or mixed.
    fn check(&self, part: &str) -> Option<String> {
        let (values, step) = match part.split_once('/') {
            Some((values, step)) => (values, Some(step)),
            None => (part, None),
        };
        if let Some(step) = step {
            match step.parse::<u32>() {
                Ok(0) => return Some(self.problem(part, "the step must be a positive number")),
                Ok(_) => {}
                Err(_) => return Some(self.problem(part, "the step is no number")),
            }
        }
        if matches!(values, "*" | "?") {
            return None;
        }
        let (first, last) = values.split_once('-').unwrap_or((values, values));
        let (Some(first), Some(last)) = (self.value(first), self.value(last)) else {
            return Some(self.problem(part, "it is neither a number nor a name"));
        };
        let (least, greatest) = self.range;
        if first < least || last > greatest {
            return Some(self.problem(part, &format!("it must be from {least} to {greatest}")));
        }
        (first > last).then(|| self.problem(part, "the range ends before it begins"))
    }

    fn value(&self, text: &str) -> Option<u32> {
        let position = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        match position {
            Some(position) => Some(self.range.0 + u32::try_from(position).ok()?),
            None => text.parse().ok(),
        }
    }

    fn problem(&self, part: &str, what: &str) -> String {
        format!("{} `{part}`: {what}", self.name)
    }
}

/// `1h30m`, `90s`, `1.5h`, as Go writes durations.
fn is_duration(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let unit_at = rest.find(|char: char| !char.is_ascii_digit() && char != '.');
        let Some((number, unit)) = unit_at.map(|at| rest.split_at(at)) else {
            return false;
        };
        let known = ["ns", "us", "ms", "s", "m", "h"];
        let unit = known
            .iter()
            .filter(|name| unit.starts_with(**name))
            .max_by_key(|name| name.len());
        let (Some(unit), Ok(_)) = (unit, number.parse::<f64>()) else {
            return false;
        };
        rest = &rest[number.len() + unit.len()..];
    }
    !text.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_read_as_kubernetes_reads_them() {
        for schedule in [
            "* * * * *",
            "*/5 9-17 1,15 jan-MAR Mon-fri",
            "0 0 ? * 0/2",
            "59 23 31 12 6",
            "@daily",
            "@every 1h30m",
            "@every 90s",
            "@every 1.5h",
        ] {
            assert_eq!(check(schedule), None, "{schedule}");
        }
        for (schedule, expected) in [
            ("* * * *", "expected exactly 5 fields, found 4: * * * *"),
            ("60 * * * *", "minute `60`: it must be from 0 to 59"),
            ("* * 0 * *", "day of month `0`: it must be from 1 to 31"),
            ("* * * * 7", "day of week `7`: it must be from 0 to 6"),
            ("* 9-8 * * *", "hour `9-8`: the range ends before it begins"),
            ("*/0 * * * *", "minute `*/0`: the step must be a positive number"),
            ("*/x * * * *", "minute `*/x`: the step is no number"),
            ("a * * * *", "minute `a`: it is neither a number nor a name"),
            ("1, * * * *", "minute ``: it is neither a number nor a name"),
            ("@noon", "unrecognized descriptor: @noon"),
            (
                "@every 5",
                "failed to parse duration @every 5: a number and a unit, as in @every 1h30m",
            ),
            (
                "TZ=UTC 0 0 * * *",
                "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            ),
        ] {
            assert_eq!(check(schedule).as_deref(), Some(expected), "{schedule}");
        }
    }
}
