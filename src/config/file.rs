//! The TOML of `--config`: keys are flag names, values become the texts a flag would have had.
//!
//! Owns: the way from TOML to `(setting, texts)`. Promises: an unknown key, a table or a value of the
//! wrong shape is refused by name. Must not: read files (the caller has the text) or judge values.
use super::setting::{Kind, SETTINGS, Setting};
use super::{Given, Problem, sections};
use crate::mail::text::printable;

/// What a file says.
#[derive(Debug, Default)]
pub struct Contents {
    pub given: Given,
    /// With its sections.
    pub table: toml::Table,
}

/// Reads the file's text. `path` is for messages only. Every problem is reported, not just the first.
pub fn read(path: &str, text: &str) -> (Contents, Vec<Problem>) {
    let mut given = Given::new();
    let mut problems = Vec::new();
    let mut table = toml::Table::new();
    match text.parse::<toml::Table>() {
        Err(error) => problems.push(Problem(format!("{path}: not valid TOML: {}", one_line(&error, text)))),
        Ok(read) => {
            table = read;
            for (key, value) in table.iter().filter(|(key, _)| !sections::SECTIONS.contains(&key.as_str())) {
                match entry(key, value) {
                    Ok((setting, texts)) => drop(given.insert(setting.name, texts)),
                    Err(why) => {
                        problems.push(Problem(format!("{path}: \"{}\" {why}", printable(key.as_bytes()))));
                    }
                }
            }
        }
    }
    (Contents { given, table }, problems)
}

fn one_line(error: &toml::de::Error, text: &str) -> String {
    let line = error.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
    let message = printable(error.message().replace('\n', " ").as_bytes());
    match line {
        Some(line) => format!("line {line}: {message}"),
        None => message,
    }
}

fn entry(key: &str, value: &toml::Value) -> Result<(&'static Setting, Vec<String>), String> {
    let Some(setting) = Setting::find(key) else {
        let hyphens = key.replace('_', "-").to_ascii_lowercase();
        return Err(match SETTINGS.iter().find(|s| s.name == hyphens) {
            Some(meant) => format!("is not a setting: write \"{}\"", meant.name),
            None => {
                "is not a setting: keys are the flags of `ringpost serve --help` without their dashes".into()
            }
        });
    };
    let texts = match (setting.kind, value) {
        (_, toml::Value::Table(sections)) if setting.name == "source" => sections::sources(sections),
        (Kind::Many | Kind::Commas, toml::Value::Array(items)) => {
            let texts = items.iter().map(scalar).collect::<Result<Vec<_>, _>>()?;
            if setting.kind == Kind::Commas { vec![texts.join(",")] } else { texts }
        }
        (Kind::Switch, toml::Value::Boolean(on)) => vec![on.to_string()],
        (Kind::Switch, _) => return Err("takes true or false, without quotes".into()),
        (_, value) => vec![scalar(value)?],
    };
    Ok((setting, texts))
}

pub fn scalar(value: &toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Array(_) => Err("takes one value, not a list".into()),
        other => Err(format!("takes a text in quotes or a whole number, not a {}", other.type_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_the_texts_of_flags() {
        let (Contents { given, .. }, problems) = read(
            "r.toml",
            "listen = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\nroute = \"*=127.0.0.1:9\"\nmx-port = 26\n\
             retry-schedule = [\"1m\", \"5m\"]\nallow-private-mx = true\nrelay-from = []\n",
        );
        assert_eq!(problems, []);
        let expected: [(&str, &[&str]); 6] = [
            ("listen", &["127.0.0.1:1", "127.0.0.1:2"]),
            ("route", &["*=127.0.0.1:9"]),
            ("mx-port", &["26"]),
            ("retry-schedule", &["1m,5m"]),
            ("allow-private-mx", &["true"]),
            ("relay-from", &[]),
        ];
        assert_eq!(given.len(), expected.len());
        for (name, texts) in expected {
            assert_eq!(given[name], texts, "{name}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, complaint) in [
            ("max-sise = 1", "r.toml: \"max-sise\" is not a setting: keys are the flags"),
            ("max_age = '5d'", "r.toml: \"max_age\" is not a setting: write \"max-age\""),
            ("config = 'x'", "r.toml: \"config\" is not a setting"),
            ("workers = [1]", "r.toml: \"workers\" takes one value, not a list"),
            ("workers = 1.5", "r.toml: \"workers\" takes a text in quotes or a whole number, not a float"),
            ("listen = [[1]]", "r.toml: \"listen\" takes one value, not a list"),
            ("allow-private-mx = 'yes'", "r.toml: \"allow-private-mx\" takes true or false"),
            ("[spool]\na = 1", "r.toml: \"spool\" takes a text in quotes or a whole number, not a table"),
            ("listen = 1\n\nx", "r.toml: not valid TOML: line 3: "),
        ] {
            let (_, problems) = read("r.toml", text);
            assert_eq!(problems.len(), 1, "{text}");
            assert!(problems[0].0.starts_with(complaint), "{text}: {}", problems[0]);
            assert!(!problems[0].0.contains('\n'));
        }
    }

    #[test]
    fn every_problem_is_reported() {
        let (Contents { given, .. }, problems) = read("r.toml", "a = 1\nb = 2\nworkers = 3");
        assert_eq!((given.len(), problems.len()), (1, 2));
    }
}
