//! Layers of settings laid over each other: flag over environment over file over default.
//!
//! Owns: [`Effective`], the text in force for each setting and where it came from. Promises: the
//! highest layer that names a setting wins it whole; an empty environment variable counts as not
//! set. Must not: read the environment or files itself; they come in as arguments.
use std::collections::BTreeMap;

use super::setting::{Kind, Preset, SETTINGS, Setting};
use super::{Problem, Rules, System, file, grammar, sections};

/// Settings that one layer names, with their texts.
pub type Given = BTreeMap<&'static str, Vec<String>>;

/// The layer a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    Flag,
    Environment,
    File,
    Default,
}

/// One setting as it is in force.
#[derive(Clone, Debug)]
pub struct Entry {
    pub setting: &'static Setting,
    /// Empty: not set (or a list given as empty).
    pub texts: Vec<String>,
    pub origin: Origin,
}

/// All settings in force, in the order of [`SETTINGS`].
#[derive(Clone, Debug)]
pub struct Effective {
    pub entries: Vec<Entry>,
    pub rules: Rules,
    /// Path of the file, for messages.
    pub file: Option<String>,
}

impl Effective {
    /// Lays the layers over each other. `flags` holds what the command line named; `variable` gives
    /// the value of an environment variable; `file` is the path and text of the TOML, if any.
    /// Problems are those of the file's form; the entries are usable all the same.
    pub fn gather(
        mut flags: Given,
        variable: &dyn Fn(&str) -> Option<String>,
        file: Option<(&str, &str)>,
        system: &System,
    ) -> (Effective, Vec<Problem>) {
        let (contents, mut problems) = file.map(|(path, text)| file::read(path, text)).unwrap_or_default();
        let mut in_file = contents.given;
        let entries: Vec<Entry> = SETTINGS
            .iter()
            .map(|setting| {
                let (texts, origin) = if let Some(texts) = flags.remove(setting.name) {
                    (texts, Origin::Flag)
                } else if let Some(text) = variable(&setting.variable()).filter(|text| !text.is_empty()) {
                    (from_variable(setting, text), Origin::Environment)
                } else if let Some(texts) = in_file.remove(setting.name) {
                    (texts, Origin::File)
                } else {
                    (preset(setting, system), Origin::Default)
                };
                Entry { setting, texts, origin }
            })
            .collect();
        let is_off = |e: &Entry| e.setting.name == "provider-defaults" && e.texts == ["false"];
        let shipped = !entries.iter().any(is_off);
        let path = file.map(|(path, _)| path.to_owned());
        let (rules, wrong) = sections::read(path.as_deref().unwrap_or("--config"), &contents.table, shipped);
        problems.extend(wrong);
        (Effective { entries, rules, file: path }, problems)
    }

    /// The entry of that setting. Panics on a name that the table does not hold.
    pub fn entry(&self, name: &str) -> &Entry {
        self.entries.iter().find(|e| e.setting.name == name).expect("settings are named as in the table")
    }
}

impl Entry {
    /// Where the value stands, in words.
    pub fn where_given(&self, file: Option<&str>) -> String {
        match self.origin {
            Origin::Flag => "flag".into(),
            Origin::Environment => format!("environment, {}", self.setting.variable()),
            Origin::File => format!("file, {}", file.unwrap_or("--config")),
            Origin::Default => "default".into(),
        }
    }
}

fn from_variable(setting: &Setting, text: String) -> Vec<String> {
    match setting.kind {
        Kind::Many => text.split_whitespace().map(str::to_owned).collect(),
        Kind::One | Kind::Commas | Kind::Switch => vec![text],
    }
}

fn preset(setting: &Setting, system: &System) -> Vec<String> {
    match setting.default {
        Preset::Text(texts) => texts.iter().map(|&text| text.to_owned()).collect(),
        Preset::Unset(_) => Vec::new(),
        Preset::SystemHostname => vec![system.hostname.clone()],
        Preset::SystemCores => vec![system.cores.to_string()],
        // Whole MiB: an odd number of bytes tells a reader nothing.
        Preset::HalfOfMemory => vec![grammar::show_size((system.memory_bytes / 2) >> 20 << 20)],
    }
}
