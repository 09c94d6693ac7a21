//! A string that seldom needs memory of its own.
//!
//! Owns: [`Short`], what addresses and domains are kept in. Promises: up to [`INLINE_BYTES`] stand in the
//! value itself, so that a message passes through the server without an allocation for each of its
//! addresses; longer ones work as well. Must not: know what the text means.
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

/// Longest text kept in place: most addresses, and nearly all domains.
pub const INLINE_BYTES: usize = 46;

/// An immutable string.
#[derive(Clone)]
pub struct Short(Text);

#[derive(Clone)]
enum Text {
    Inline { bytes: u8, text: [u8; INLINE_BYTES] },
    Heap(Box<str>),
}

const _: () = assert!(size_of::<Short>() == 48);

impl Short {
    /// `parts`, one behind the other.
    pub fn concat(parts: &[&str]) -> Short {
        let bytes: usize = parts.iter().map(|p| p.len()).sum();
        if bytes > INLINE_BYTES {
            return Short(Text::Heap(parts.concat().into_boxed_str()));
        }
        let (mut text, mut at) = ([0; INLINE_BYTES], 0);
        for part in parts {
            text[at..at + part.len()].copy_from_slice(part.as_bytes());
            at += part.len();
        }
        Short(Text::Inline { bytes: bytes as u8, text })
    }

    pub fn make_ascii_lowercase(&mut self) {
        match &mut self.0 {
            Text::Inline { text, .. } => text.make_ascii_lowercase(),
            Text::Heap(text) => text.make_ascii_lowercase(),
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Text::Inline { bytes, text } => &text[..usize::from(*bytes)],
            Text::Heap(text) => text.as_bytes(),
        }
    }
}

impl Deref for Short {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Text::Inline { .. } => std::str::from_utf8(self.as_bytes()).expect("it was made of strings"),
            Text::Heap(text) => text,
        }
    }
}

impl From<&str> for Short {
    fn from(text: &str) -> Short {
        Short::concat(&[text])
    }
}

impl PartialEq for Short {
    fn eq(&self, other: &Short) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Short {}

impl PartialOrd for Short {
    fn partial_cmp(&self, other: &Short) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Short {
    fn cmp(&self, other: &Short) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for Short {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_every_length_are_themselves() {
        let long = "Añ".repeat(40);
        for end in (0..=long.len()).filter(|&end| long.is_char_boundary(end)) {
            let text = &long[..end];
            for cut in (0..=end).filter(|&cut| long.is_char_boundary(cut)) {
                let mut short = Short::concat(&[&text[..cut], &text[cut..]]);
                assert_eq!((&*short, &short), (text, &Short::from(text)));
                assert_eq!(matches!(short.0, Text::Heap(_)), end > INLINE_BYTES);
                short.make_ascii_lowercase();
                assert_eq!(*short, *text.to_ascii_lowercase());
            }
        }
        assert!(Short::from("a") < Short::from("b") && Short::from("a") < Short::from("aa"));
    }
}
