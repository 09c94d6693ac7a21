//! `[[rule]]`: what follows from a receiver's refusal.
//!
//! Owns: the form of a rule in the file. Promises: what [`to_toml`] shows reads back to the same rules; a
//! rule that nothing fits, or all refusals do, is refused. Must not: match replies (`schedule::rules`).
use super::grammar::{self, Parsed, show_duration};
use crate::limits;
use crate::mail::text::printable;
use crate::schedule::{Reaction, Rule, Verdict};

const KEYS: [&str; 5] = ["code", "enhanced", "text", "action", "for"];

/// The word of each action; that of a suspension needs `for`.
const ACTIONS: [(&str, Reaction); 5] = [
    ("nothing", Reaction::Tell(Verdict::Nothing)),
    ("fewer-connections", Reaction::Tell(Verdict::FewerConnections)),
    ("slower", Reaction::Tell(Verdict::Slower)),
    ("back-off", Reaction::Tell(Verdict::BackOff)),
    ("bounce", Reaction::Bounce),
];
const SUSPEND: &str = "suspend";

/// Reads one rule.
pub fn read(table: &toml::Table) -> Parsed<Rule> {
    if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(format!("\"{}\" is not one of its keys: {}", printable(key.as_bytes()), KEYS.join(", ")));
    }
    let text_of = |key: &str| match table.get(key) {
        None => Ok(None),
        Some(toml::Value::String(text)) => Ok(Some(text.clone())),
        Some(toml::Value::Integer(number)) => Ok(Some(number.to_string())),
        Some(_) => Err(format!("{key} takes a text in quotes")),
    };
    let codes = text_of("code")?.map_or(Ok((400, 599)), |text| codes(&text))?;
    let enhanced = text_of("enhanced")?.map_or(Ok(String::new()), |text| enhanced(&text))?;
    let text = text_of("text")?.unwrap_or_default();
    if text.len() > limits::RULE_TEXT_BYTES {
        return Err(format!("text has more than {} bytes", limits::RULE_TEXT_BYTES));
    }
    if enhanced.is_empty() && text.split('*').all(str::is_empty) && !table.contains_key("code") {
        return Err("fits every refusal: give it a code, an enhanced code or a text".into());
    }
    let action = text_of("action")?.ok_or_else(|| format!("has no action: write {}", words()))?;
    let time = text_of("for")?.map(|text| grammar::duration(&text).map_err(|why| format!("for {why}")));
    let reaction = match (action.as_str(), time.transpose()?) {
        (SUSPEND, Some(time)) if !time.is_zero() && time <= limits::MAX_AGE => {
            Reaction::Tell(Verdict::Suspend(time))
        }
        (SUSPEND, Some(_)) => {
            return Err(format!("for is out of range: write 1s to {}", show_duration(limits::MAX_AGE)));
        }
        (SUSPEND, None) => return Err("suspends for no time: write for = \"30m\"".into()),
        (_, Some(_)) => return Err("for is a key of the action suspend alone".into()),
        (word, None) => {
            let known = ACTIONS.iter().find(|(known, _)| *known == word).map(|(_, reaction)| *reaction);
            known.ok_or_else(|| {
                format!("action \"{}\" is unknown: write {}", printable(word.as_bytes()), words())
            })?
        }
    };
    Ok(Rule { codes, enhanced: enhanced.into(), text: text.into(), reaction })
}

fn words() -> String {
    let words = ACTIONS.iter().map(|(word, _)| *word).chain([SUSPEND]);
    words.collect::<Vec<_>>().join(", ")
}

/// `421`, or `400-499`.
fn codes(text: &str) -> Parsed<(u16, u16)> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let range = from.trim().parse().ok().zip(to.trim().parse().ok());
    range.filter(|(from, to)| (400..600).contains(from) && from <= to && *to < 600).ok_or_else(|| {
        format!("code \"{}\" is no refusal: write 421, or 400-499", printable(text.as_bytes()))
    })
}

/// `4.7.28`, or `4.7.*`.
fn enhanced(text: &str) -> Parsed<String> {
    let parts: Vec<&str> = text.split('.').collect();
    let good = |part: &&str| *part == "*" || part.len() <= 3 && part.parse::<u16>().is_ok();
    let class = matches!(parts[0], "4" | "5" | "*");
    (parts.len() == 3 && class && parts.iter().all(good)).then(|| text.to_owned()).ok_or_else(|| {
        format!("enhanced \"{}\" is no code: write 4.7.28, or 4.7.*", printable(text.as_bytes()))
    })
}

/// The rule as a section.
pub fn to_toml(rule: &Rule) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut out = String::from("\n[[rule]]\n");
    let (from, to) = rule.codes;
    let code = if from == to { from.to_string() } else { format!("{from}-{to}") };
    out.push_str(&format!("code = {}\n", quoted(&code)));
    for (key, value) in [("enhanced", &rule.enhanced), ("text", &rule.text)] {
        if !value.is_empty() {
            out.push_str(&format!("{key} = {}\n", quoted(value)));
        }
    }
    match rule.reaction {
        Reaction::Tell(Verdict::Suspend(time)) => {
            out.push_str(&format!("action = \"{SUSPEND}\"\nfor = {}\n", quoted(&show_duration(time))));
        }
        other => {
            let word = ACTIONS.iter().find(|(_, reaction)| *reaction == other).map_or("", |(word, _)| word);
            out.push_str(&format!("action = {}\n", quoted(word)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Parsed<Rule> {
        read(&text.parse().expect("TOML"))
    }

    #[test]
    fn rules_read_back() {
        for text in [
            "code = 421\naction = \"back-off\"",
            "code = \"400-499\"\nenhanced = \"4.7.*\"\naction = \"slower\"",
            "text = \"too many*from \\\"you\\\"\"\naction = \"fewer-connections\"",
            "enhanced = \"5.7.1\"\naction = \"bounce\"",
            "text = \"listed\"\naction = \"suspend\"\nfor = \"90m\"",
            "text = \"mailbox\"\naction = \"nothing\"",
        ] {
            let read = rule(text).expect(text);
            let printed = to_toml(&read);
            let again = rule(printed.trim_start().strip_prefix("[[rule]]").expect("a rule"));
            assert_eq!(again, Ok(read), "{printed}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, complaint) in [
            ("action = \"slower\"", "fits every refusal"),
            ("text = \"*\"\naction = \"slower\"", "fits every refusal"),
            ("code = 250\naction = \"slower\"", "code \"250\" is no refusal"),
            ("code = \"450-400\"\naction = \"slower\"", "code \"450-400\" is no refusal"),
            ("code = [421]\naction = \"slower\"", "code takes a text"),
            ("enhanced = \"2.1.0\"\naction = \"slower\"", "enhanced \"2.1.0\" is no code"),
            ("enhanced = \"4.7\"\naction = \"slower\"", "enhanced \"4.7\" is no code"),
            ("enhanced = \"4.7.1234\"\naction = \"slower\"", "enhanced \"4.7.1234\" is no code"),
            ("code = 421", "has no action"),
            ("code = 421\naction = \"faster\"", "action \"faster\" is unknown: write nothing,"),
            ("code = 421\naction = \"suspend\"", "suspends for no time"),
            ("code = 421\naction = \"suspend\"\nfor = \"soon\"", "for \"soon\" is not a duration"),
            ("code = 421\naction = \"suspend\"\nfor = 0", "for is out of range"),
            ("code = 421\naction = \"bounce\"\nfor = \"1h\"", "for is a key of the action suspend"),
            ("code = 421\ndo = \"bounce\"", "\"do\" is not one of its keys"),
        ] {
            let error = rule(text).expect_err(text);
            assert!(error.starts_with(complaint), "{text}: {error}");
        }
    }
}
