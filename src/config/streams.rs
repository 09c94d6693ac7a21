//! `[stream.NAME]`: what is ordered for a stream.
//!
//! Owns: [`StreamSection`] and its keys beside those of limits. Promises: what [`StreamSection::to_toml`]
//! shows reads back to the same. Must not: number streams.
use super::grammar;
use super::knobs::Knobs;
use crate::limits;
use crate::mail::text::printable;

/// One section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSection {
    pub name: String,
    pub weight: u16,
    /// Its mail goes before that of the others.
    pub transactional: bool,
    /// Connections and rates of the stream, wherever its mail goes.
    pub knobs: Knobs,
}

/// Keys beside those of [`Knobs`].
pub const KEYS: [&str; 2] = ["weight", "transactional"];

impl StreamSection {
    /// Reads a section whose limits are known.
    pub fn read(name: &str, section: &toml::Table, knobs: Knobs) -> Result<StreamSection, String> {
        if name.is_empty() || name.len() > limits::STREAM_NAME_BYTES || name != name.trim() {
            let most = limits::STREAM_NAME_BYTES;
            return Err(format!(
                "is no name of a stream: write 1 to {most} bytes, without space around them"
            ));
        }
        let weight = match section.get("weight") {
            None => 1,
            Some(toml::Value::Integer(weight)) if (1..=i64::from(limits::STREAM_WEIGHT)).contains(weight) => {
                *weight as u16
            }
            Some(other) => {
                let shown = printable(other.to_string().as_bytes());
                return Err(format!("weight {shown} is no number from 1 to {}", limits::STREAM_WEIGHT));
            }
        };
        let transactional = match section.get("transactional") {
            None => false,
            Some(toml::Value::Boolean(on)) => *on,
            Some(toml::Value::String(text)) => {
                grammar::switch(text).map_err(|why| format!("transactional {why}"))?
            }
            Some(_) => return Err("transactional takes true or false".into()),
        };
        Ok(StreamSection { name: name.to_owned(), weight, transactional, knobs })
    }

    pub fn to_toml(&self) -> String {
        let name = toml::Value::String(self.name.clone());
        let urgent = if self.transactional { "transactional = true\n" } else { "" };
        format!("\n[stream.{name}]\nweight = {}\n{urgent}{}", self.weight, self.knobs.to_toml())
    }
}
