//! The effective configuration as `ringpost check` prints it.
//!
//! Owns: its TOML and JSON forms. Promises: the TOML, given back with `--config`, makes the same
//! configuration; each line says where its value came from. Must not: judge values (`validate`).
use std::fmt::Write;

use super::gather::{Effective, Entry};
use super::grammar;
use super::setting::Kind;

impl Effective {
    /// One line per setting, its origin in a comment; settings without a value are commented out.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        for entry in &self.entries {
            let name = entry.setting.name;
            let origin = entry.where_given(self.file.as_deref());
            let in_sections = name == "source" && self.rules.limited_sources().next().is_some();
            let line = match toml_value(entry) {
                _ if in_sections => "# source: in sections below".to_owned(),
                Some(value) => format!("{name} = {value}"),
                None => format!("# {name}: {}", entry.setting.default_in_words()),
            };
            writeln!(out, "{line:<60} # {origin}").expect("writing to a String cannot fail");
        }
        let shipped = self.rules.providers().iter().filter(|p| p.shipped).map(|p| p.name.as_str());
        let shipped = shipped.collect::<Vec<_>>().join(", ");
        if !shipped.is_empty() {
            let line =
                format!("\n# Limits as shipped for: {shipped}. `ringpost resolve DOMAIN` shows them.\n");
            out.push_str(&line);
        }
        out.push_str(&self.rules.to_toml());
        out.push_str(&self.sources_to_toml());
        out
    }

    /// The local addresses in force as sections, if any of them has one.
    fn sources_to_toml(&self) -> String {
        let mut out = String::new();
        if self.rules.limited_sources().next().is_none() {
            return out;
        }
        for source in self.entry("source").texts.iter().filter_map(|text| grammar::source(text).ok()) {
            let name = toml::Value::String(source.ehlo_name);
            out.push_str(&format!("\n[source.\"{}\"]\nehlo-name = {name}\n", source.address));
            self.rules.source(source.address).into_iter().for_each(|knobs| out.push_str(&knobs.to_toml()));
        }
        out
    }

    /// `{ NAME: { "value": …, "origin": … } }`; a list is an array, an unset value is null.
    pub fn to_json(&self) -> serde_json::Value {
        let entries = self.entries.iter().map(|entry| {
            let value = match (entry.setting.kind, entry.texts.first()) {
                (Kind::Many, _) => serde_json::json!(entry.texts),
                (Kind::Switch, Some(text)) => serde_json::json!(text == "true"),
                (_, text) => serde_json::json!(text),
            };
            let described = serde_json::json!({ "value": value, "origin": entry.origin });
            (entry.setting.name.to_owned(), described)
        });
        serde_json::Value::Object(entries.collect())
    }
}

fn toml_value(entry: &Entry) -> Option<String> {
    let quoted = |text: &String| toml::Value::String(text.clone()).to_string();
    match entry.setting.kind {
        Kind::Many if entry.texts.is_empty() && entry.origin == super::Origin::Default => None,
        Kind::Many => Some(format!("[{}]", entry.texts.iter().map(quoted).collect::<Vec<_>>().join(", "))),
        Kind::Switch => entry.texts.first().cloned(),
        Kind::One | Kind::Commas => entry.texts.first().map(|text| match text.parse::<i64>() {
            Ok(number) if number.to_string() == *text => text.clone(),
            _ => quoted(text),
        }),
    }
}
