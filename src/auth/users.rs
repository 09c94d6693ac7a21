//! The file of users (`--auth-file`).
//!
//! Owns: its format, and what an entry allows. Promises: a file with one bad line is refused whole, with
//! the line's number and never its secret; for a name that is not in it there is a stand-in that costs
//! the same to check. Must not: read the file itself.
//!
//! One user a line: `name:credential` and options, separated by spaces. Empty lines and those that begin
//! with `#` are passed over.
//!
//! ```text
//! alice@example.com:$argon2id$v=19$m=19456,t=2,p=1$…
//! news:SCRAM-SHA-256$100000:…$…:… from=news.example.com,example.org rate=10000/h
//! gateway:$2b$12$… from=*
//! ```
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;

use super::Mechanism;
use super::credential::Credential;
use super::plain;
use super::prepare::name_key;
use super::scram::Verifier;
use crate::limits;
use crate::mail::address::Address;
use crate::mail::senders::Senders;
use crate::mail::text::printable;

/// Key of what is made up for names that are not known: the same after a restart.
#[derive(Clone)]
pub struct Secret(pub [u8; 16]);

/// One user.
#[derive(Debug)]
pub struct User {
    pub name: Box<str>,
    pub credential: Credential,
    /// `from=`: the reverse-paths it may use.
    pub senders: Arc<Senders>,
    /// `rate=`: recipients it may send to in a time.
    pub rate: Option<(u32, Duration)>,
    /// `stream=`: the stream of its mail.
    pub stream: Option<Box<str>>,
}

/// All users.
pub struct Users {
    /// In the order of the file.
    list: Vec<Arc<User>>,
    /// By the form in which names are compared, the index in `list`.
    by_name: HashMap<Box<str>, usize>,
    secret: Secret,
}

impl Users {
    /// Reads the text of the file. `rate` reads the value of a `rate=` option.
    pub fn parse(
        text: &str,
        secret: Secret,
        rate: fn(&str) -> Result<(u32, Duration), String>,
    ) -> Result<Users, String> {
        let mut users = Users { list: Vec::new(), by_name: HashMap::new(), secret };
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let user = parse_line(line, rate).map_err(|why| format!("line {}: {why}", at + 1))?;
            let key = name_key(&user.name).into_boxed_str();
            if users.by_name.insert(key, users.list.len()).is_some() {
                return Err(format!(
                    "line {}: {} stands there twice",
                    at + 1,
                    printable(user.name.as_bytes())
                ));
            }
            users.list.push(Arc::new(user));
            if users.list.len() > limits::AUTH_USERS {
                return Err(format!("has more than {} users", limits::AUTH_USERS));
            }
        }
        if users.list.is_empty() {
            return Err("has no user: make a line with `ringpost passwd hash NAME`".into());
        }
        Ok(users)
    }

    /// Names are compared in their prepared form (RFC 4013), without regard to the case of ASCII letters.
    pub fn find(&self, name: &str) -> Option<&Arc<User>> {
        self.by_name.get(name_key(name).as_str()).map(|&at| &self.list[at])
    }

    /// Mechanisms that every user of the file can use. A client takes the strongest that is offered, so
    /// SCRAM is offered only if nobody is shut out by it.
    pub fn mechanisms(&self) -> Vec<&'static str> {
        let scram = self.list.iter().all(|user| user.credential.scram().is_some());
        let usable = |mechanism: &Mechanism| match mechanism {
            Mechanism::ScramSha256Plus | Mechanism::ScramSha256 => scram,
            Mechanism::Plain | Mechanism::Login => true,
        };
        Mechanism::ALL.into_iter().filter(usable).map(Mechanism::name).collect()
    }

    /// A user's credential, or for a name that is not there that of another one, always the same, whose
    /// checking takes as long. The second value says whether it counts.
    pub fn credential_for(&self, name: &str) -> (Credential, bool) {
        match self.find(name) {
            Some(user) => (user.credential.clone(), true),
            None => (self.double_of(name).credential.clone(), false),
        }
    }

    /// A user's SCRAM verifier, or one that nothing fits.
    pub fn verifier_for(&self, name: &str) -> Verifier {
        let known = self.find(name).and_then(|user| user.credential.scram());
        known.cloned().unwrap_or_else(|| {
            let name = name_key(name);
            Verifier::fake(&self.secret.0, &name, self.double_of(&name).credential.scram())
        })
    }

    /// Some user, the same each time for the same name.
    fn double_of(&self, name: &str) -> &User {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.secret.0);
        let tag = hmac::sign(&key, &[b"double of ", name_key(name).as_bytes()].concat());
        let number = u64::from_be_bytes(*tag.as_ref().first_chunk().expect("SHA-256 has 32 bytes"));
        &self.list[(number % self.list.len() as u64) as usize]
    }
}

fn parse_line(line: &str, rate: fn(&str) -> Result<(u32, Duration), String>) -> Result<User, String> {
    let mut words = line.split_ascii_whitespace();
    let entry = words.next().unwrap_or_default();
    let (name, credential) = entry.split_once(':').ok_or("a line has the form name:credential")?;
    let name =
        plain::user_name(name.as_bytes()).ok_or("the name is empty, too long or has control characters")?;
    let shown = printable(name.as_bytes());
    let credential = Credential::parse(credential).map_err(|why| format!("{shown}: the credential {why}"))?;
    let (mut senders, mut limit, mut stream) = (None, None, None);
    for word in words {
        match word.split_once('=') {
            Some(("from", value)) if senders.is_none() => {
                senders = Some(Senders::parse(value).map_err(|why| format!("{shown}: from={why}"))?);
            }
            Some(("rate", value)) if limit.is_none() => {
                limit = Some(rate(value).map_err(|why| format!("{shown}: rate={why}"))?);
            }
            Some(("stream", value)) if stream.is_none() => {
                if value.is_empty() || value.len() > limits::STREAM_NAME_BYTES {
                    let most = limits::STREAM_NAME_BYTES;
                    return Err(format!("{shown}: stream= takes a name of 1 to {most} bytes"));
                }
                stream = Some(value.into());
            }
            _ => {
                return Err(format!(
                    "{shown}: {} is no option, or given twice: from=ADDRESS,DOMAIN,…, rate=N/TIME and stream=NAME are",
                    printable(word.as_bytes())
                ));
            }
        }
    }
    let senders = match (senders, Address::parse(name.as_bytes())) {
        (Some(senders), _) => senders,
        (None, Ok(own)) => Senders::only(own),
        (None, Err(_)) => {
            return Err(format!(
                "{shown}: say what it may send as, from=ADDRESS,DOMAIN,… or from=* (the name is no address)"
            ));
        }
    };
    Ok(User { name: name.into(), credential, senders: Arc::new(senders), rate: limit, stream })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub const SCRAM: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    const ARGON2: &str = "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFh";

    pub fn users(text: &str) -> Result<Users, String> {
        let rate = |text: &str| match text {
            "5/m" => Ok((5, Duration::from_secs(60))),
            _ => Err("bad".to_owned()),
        };
        Users::parse(text, Secret([1; 16]), rate)
    }

    #[test]
    fn a_file_is_read() {
        let users = users(&format!(
            "# people\n\nAlice@Example.com:{SCRAM}\n  news:{ARGON2}  from=news.example,a@b.example rate=5/m stream=letters\ngate:{SCRAM} from=*\n"
        ))
        .unwrap();
        let may = |user: &str, path: &str| {
            users.find(user).unwrap().senders.allows(&Some(Address::parse(path.as_bytes()).unwrap()))
        };
        assert!(
            may("alice@example.COM", "alice@example.com") && !may("Alice@example.com", "bob@example.com")
        );
        assert!(may("news", "x@news.example") && may("news", "a@b.example") && !may("news", "c@b.example"));
        assert!(may("gate", "x@y.example"));
        assert_eq!(users.find("news").unwrap().rate, Some((5, Duration::from_secs(60))));
        assert!(users.find("ali\u{ad}ce@example.com").is_some(), "a soft hyphen is nothing");
        assert_eq!(users.find("news").unwrap().stream.as_deref(), Some("letters"));
        assert!(users.find("bob").is_none() && users.find("gate").unwrap().stream.is_none());
        assert_eq!(users.mechanisms(), ["PLAIN", "LOGIN"]);
    }

    #[test]
    fn scram_is_offered_where_all_can_use_it() {
        let users = users(&format!("a:{SCRAM} from=*\nb:{SCRAM} from=*")).unwrap();
        assert_eq!(users.mechanisms(), ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN"]);
    }

    #[test]
    fn what_is_wrong_is_named_without_the_secret() {
        for (text, complaint) in [
            (String::new(), "has no user"),
            ("# only a comment".into(), "has no user"),
            ("alice".into(), "line 1: a line has the form"),
            (format!("\n:{SCRAM}"), "line 2: the name is empty"),
            ("a@b.example:tanstaaf".into(), "line 1: a@b.example: the credential is no hash"),
            (format!("a:{SCRAM}"), "line 1: a: say what it may send as"),
            (format!("a:{SCRAM} from="), "line 1: a: from="),
            (format!("a:{SCRAM} from=* from=*"), "line 1: a: from=* is no option, or given twice"),
            (format!("a:{SCRAM} from=* rate=x"), "line 1: a: rate=bad"),
            (format!("a:{SCRAM} from=* stream="), "line 1: a: stream= takes a name"),
            (format!("a:{SCRAM} from=* stream=x stream=y"), "line 1: a: stream=y is no option, or given"),
            (format!("a:{SCRAM} from=* colour=red"), "line 1: a: colour=red is no option"),
            (format!("a@b.c:{SCRAM}\nA@b.c:{SCRAM}"), "line 2: A@b.c stands there twice"),
            (
                format!("\u{fc}:{SCRAM} from=*\nu\u{308}:{SCRAM} from=*"),
                "line 2: u\\xcc\\x88 stands there twice",
            ),
        ] {
            let error = users(&text).err().unwrap_or_else(|| panic!("{text}"));
            assert!(error.starts_with(complaint), "{text}: {error}");
            assert!(!error.contains("tanstaaf") && !error.contains("W22Z"), "{error}");
        }
    }

    #[test]
    fn strangers_have_doubles() {
        let users = users(&format!("a:{SCRAM} from=*\nb:{ARGON2} from=*")).unwrap();
        assert!(users.credential_for("A").1 && !users.credential_for("x").1);
        // Each kind is the double of some strangers, and the same stranger's each time.
        let is_scram = |name: &str| users.credential_for(name).0.scram().is_some();
        let kinds: Vec<bool> = (0..64).map(|n| is_scram(&format!("stranger{n}"))).collect();
        assert!(kinds.contains(&true) && kinds.contains(&false));
        assert!((0..64).all(|n| is_scram(&format!("Stranger{n}")) == kinds[n]));
    }
}
