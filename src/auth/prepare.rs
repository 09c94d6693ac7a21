//! SASLprep (RFC 4013): one form for names and passwords that people type in several.
//!
//! Owns: the form in which both are hashed and compared. Promises: ASCII stays as it is; what SASLprep
//! forbids (emoji that are younger than it, texts in mixed directions) is taken byte for byte, so that it
//! still fits itself. Must not: judge what may be a name or a password (`plain` does).
use std::borrow::Cow;

use zeroize::Zeroizing;

/// The form in which names are compared: prepared, and without regard to the case of ASCII letters.
pub fn name_key(name: &str) -> String {
    prepared(name).to_ascii_lowercase()
}

/// A password in another form than the client's, if it has one.
pub fn password(typed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let prepared = prepared(std::str::from_utf8(typed).ok()?);
    match prepared {
        Cow::Borrowed(_) => None,
        Cow::Owned(other) => {
            let other = Zeroizing::new(other.into_bytes());
            (other.as_slice() != typed).then_some(other)
        }
    }
}

fn prepared(text: &str) -> Cow<'_, str> {
    // A text of nothing but what is left out would fit every other such text.
    stringprep::saslprep(text).ok().filter(|other| !other.is_empty()).unwrap_or(Cow::Borrowed(text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_rfc_4013_and_others() {
        for (typed, expected) in [
            // §3: a soft hyphen is left out, compatibility characters are replaced.
            ("I\u{ad}X", "IX"),
            ("user", "user"),
            ("USER", "USER"),
            ("\u{aa}", "a"),
            ("\u{2168}", "IX"),
            // Two ways to type one letter, and a space that only looks like one.
            ("ju\u{308}rgen", "j\u{fc}rgen"),
            ("j\u{fc}rgen", "j\u{fc}rgen"),
            ("a\u{a0}b", "a b"),
            // §3: forbidden, so taken as it is.
            ("\u{7}", "\u{7}"),
            ("\u{627}1", "\u{627}1"),
            ("\u{1f9c0}", "\u{1f9c0}"),
            ("\u{ad}", "\u{ad}"),
            ("", ""),
        ] {
            assert_eq!(prepared(typed), expected, "{typed:?}");
            let other = (typed != expected).then(|| expected.as_bytes().to_vec());
            assert_eq!(password(typed.as_bytes()).map(|p| p.to_vec()), other, "{typed:?}");
        }
        assert_eq!(password(b"caf\xe9"), None, "bytes of another character set stay as they are");
        assert_eq!(name_key("JU\u{308}RGEN@Example.org"), "j\u{dc}rgen@example.org");
    }

    proptest! {
        #[test]
        fn any_text_has_a_form_and_keeps_it(text in any::<String>()) {
            let once = prepared(&text).into_owned();
            prop_assert_eq!(prepared(&once), &*once);
            prop_assert_eq!(once.is_empty(), text.is_empty());
        }

        #[test]
        fn ascii_stays(text in "[ -~]*") {
            prop_assert_eq!(prepared(&text), &*text);
        }
    }
}
