//! One client's way through a mechanism (RFC 4422 §3): its messages in, challenges and a verdict out.
//!
//! Owns: [`Exchange`]. Promises: no message makes it panic; it holds no password longer than a step; a
//! name that is not known takes the same steps as one that is. Must not: check a password itself: it
//! hands out an [`Attempt`], to be checked where time does not matter.
use std::sync::Arc;

use zeroize::Zeroizing;

use super::credential::Credential;
use super::prepare::name_key;
use super::scram::{ClientFirst, Waiting};
use super::users::{User, Users};
use super::{Mechanism, plain};

/// What the channel has to bind to (RFC 5056).
#[derive(Clone, Debug, Default)]
pub struct Bindings {
    /// `tls-exporter` (RFC 9266).
    pub exporter: Option<[u8; 32]>,
    /// `tls-server-end-point` (RFC 5929).
    pub end_point: Option<Vec<u8>>,
}

impl Bindings {
    pub fn named(&self, name: &str) -> Option<&[u8]> {
        match name {
            "tls-exporter" => self.exporter.as_ref().map(|bytes| &bytes[..]),
            "tls-server-end-point" => self.end_point.as_deref(),
            _ => None,
        }
    }

    /// Whether there is any.
    pub fn is_some(&self) -> bool {
        self.exporter.is_some() || self.end_point.is_some()
    }
}

/// A password to be checked.
pub struct Attempt {
    /// The user, if there is one of that name.
    pub user: Option<Arc<User>>,
    credential: Credential,
    password: Zeroizing<Vec<u8>>,
}

impl Attempt {
    /// The user, if the password is right. Slow.
    pub fn check(self) -> Option<Arc<User>> {
        let matches = self.credential.matches(&self.password);
        self.user.filter(|_| matches)
    }
}

/// What follows a client's message.
pub enum Next {
    /// Say this to the client and give its answer to [`Exchange::step`].
    Challenge(Vec<u8>),
    /// Check this; the exchange is over.
    Check(Attempt),
    /// This is who it is; the exchange is over.
    Success(Arc<User>),
    /// The proof was wrong, or the user is not known; the exchange is over.
    Wrong,
    /// The message does not follow the mechanism; the exchange is over.
    Malformed,
}

enum State {
    Begin,
    /// LOGIN: the name was asked for, then the password.
    LoginName,
    LoginPassword(String),
    Scram(Box<Waiting>),
    /// SCRAM: the proof was right; the client owes an empty message (RFC 4954 §4).
    ScramProved(Arc<User>),
    Over,
}

pub struct Exchange {
    mechanism: Mechanism,
    users: Arc<Users>,
    bindings: Bindings,
    /// Own part of SCRAM's nonce.
    nonce: String,
    name: String,
    state: State,
}

/// Bytes in the server's part of a nonce, 8 bits of chance in two characters.
const NONCE_BYTES: usize = 18;

impl Exchange {
    pub fn new(mechanism: Mechanism, users: Arc<Users>, bindings: Bindings) -> Exchange {
        let mut random = [0; NONCE_BYTES];
        getrandom::fill(&mut random).expect("the kernel's random source works once the system has booted");
        let nonce = random.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        Exchange { mechanism, users, bindings, nonce, name: String::new(), state: State::Begin }
    }

    /// Who the client says it is, as far as it has said so.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// Begins, with the initial response if the client gave one.
    pub fn begin(&mut self, initial: Option<&[u8]>) -> Next {
        match (self.mechanism, initial) {
            (Mechanism::Login, None) => {
                self.state = State::LoginName;
                Next::Challenge(b"Username:".to_vec())
            }
            (Mechanism::Login, Some(name)) => {
                self.state = State::LoginName;
                self.step(name)
            }
            // The client speaks first: ask it to.
            (_, None) => Next::Challenge(Vec::new()),
            (_, Some(message)) => self.step(message),
        }
    }

    /// Takes the client's next message.
    pub fn step(&mut self, message: &[u8]) -> Next {
        match (std::mem::replace(&mut self.state, State::Over), self.mechanism) {
            (State::Begin, Mechanism::Plain) => self.plain(message),
            (State::Begin, Mechanism::ScramSha256) => self.scram_first(message, false),
            (State::Begin, Mechanism::ScramSha256Plus) => self.scram_first(message, true),
            (State::LoginName, _) => match plain::user_name(message) {
                Some(name) => {
                    self.name = name.to_owned();
                    self.state = State::LoginPassword(name.to_owned());
                    Next::Challenge(b"Password:".to_vec())
                }
                None => Next::Malformed,
            },
            (State::LoginPassword(name), _) if plain::is_password(message) => self.check(&name, message),
            (State::Scram(waiting), _) => self.scram_final(&waiting, message),
            (State::ScramProved(user), _) if message.is_empty() => Next::Success(user),
            _ => Next::Malformed,
        }
    }

    fn plain(&mut self, message: &[u8]) -> Next {
        let Some(said) = plain::parse(message) else { return Next::Malformed };
        self.name = said.name.to_owned();
        if !is_same(said.authzid, said.name) {
            return Next::Wrong;
        }
        self.check(said.name, said.password)
    }

    fn check(&self, name: &str, password: &[u8]) -> Next {
        let (credential, counts) = self.users.credential_for(name);
        let user = self.users.find(name).filter(|_| counts).cloned();
        Next::Check(Attempt { user, credential, password: Zeroizing::new(password.to_vec()) })
    }

    fn scram_first(&mut self, message: &[u8], plus: bool) -> Next {
        let Some(first) = ClientFirst::parse(message, plus, self.bindings.is_some()) else {
            return Next::Malformed;
        };
        if plain::user_name(first.name.as_bytes()).is_none() {
            return Next::Malformed;
        }
        self.name.clone_from(&first.name);
        if !is_same(&first.authzid, &first.name) {
            return Next::Wrong;
        }
        let verifier = self.users.verifier_for(&first.name);
        match Waiting::begin(first, verifier, &self.bindings, &self.nonce) {
            Some((challenge, waiting)) => {
                self.state = State::Scram(Box::new(waiting));
                Next::Challenge(challenge)
            }
            None => Next::Malformed,
        }
    }

    fn scram_final(&mut self, waiting: &Waiting, message: &[u8]) -> Next {
        match (waiting.finish(message), self.users.find(waiting.name())) {
            (Some(last), Some(user)) => {
                self.state = State::ScramProved(user.clone());
                Next::Challenge(last)
            }
            _ => Next::Wrong,
        }
    }
}

/// Nobody acts for another here.
fn is_same(authzid: &str, name: &str) -> bool {
    authzid.is_empty() || name_key(authzid) == name_key(name)
}

#[cfg(test)]
mod tests {
    use super::super::users::tests::{SCRAM, users};
    use super::*;

    /// Runs an exchange; gives what the server said and the verdict.
    fn run(mechanism: Mechanism, initial: Option<&[u8]>, answers: &[&[u8]]) -> (Vec<String>, String) {
        let users = Arc::new(users(&format!("user:{SCRAM} from=*")).unwrap());
        let mut exchange = Exchange::new(mechanism, users, Bindings::default());
        exchange.nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".into();
        let mut said = Vec::new();
        let mut next = exchange.begin(initial);
        let mut answers = answers.iter();
        loop {
            let user = match next {
                Next::Challenge(challenge) => {
                    said.push(String::from_utf8(challenge).unwrap());
                    match answers.next() {
                        Some(answer) => next = exchange.step(answer),
                        None => return (said, "waits".into()),
                    }
                    continue;
                }
                Next::Check(attempt) => attempt.check(),
                Next::Success(user) => Some(user),
                Next::Wrong => None,
                Next::Malformed => return (said, "malformed".into()),
            };
            assert!(matches!(exchange.step(b"more"), Next::Malformed), "it is over");
            return (said, user.map_or("wrong".into(), |user| user.name.to_string()));
        }
    }

    /// Mechanism, initial response, what the client says after, what it is told, how it ends.
    type Case =
        (Mechanism, Option<&'static [u8]>, &'static [&'static [u8]], &'static [&'static str], &'static str);

    #[test]
    fn plain_and_login() {
        let table: [Case; 13] = [
            (Mechanism::Plain, Some(b"\0user\0pencil"), &[], &[], "user"),
            (Mechanism::Plain, Some(b"USER\0user\0pencil"), &[], &[], "user"),
            (Mechanism::Plain, Some(b"root\0user\0pencil"), &[], &[], "wrong"),
            (Mechanism::Plain, Some(b"\0user\0pen"), &[], &[], "wrong"),
            (Mechanism::Plain, Some(b"\0stranger\0pencil"), &[], &[], "wrong"),
            (Mechanism::Plain, Some(b""), &[], &[], "malformed"),
            (Mechanism::Plain, None, &[b"\0user\0pencil"], &[""], "user"),
            (Mechanism::Plain, None, &[], &[""], "waits"),
            (Mechanism::Login, None, &[b"user", b"pencil"], &["Username:", "Password:"], "user"),
            (Mechanism::Login, Some(b"user"), &[b"pencil"], &["Password:"], "user"),
            (Mechanism::Login, Some(b"user"), &[b"pen"], &["Password:"], "wrong"),
            (Mechanism::Login, None, &[b""], &["Username:"], "malformed"),
            (Mechanism::Login, None, &[b"user", b""], &["Username:", "Password:"], "malformed"),
        ];
        for (mechanism, initial, answers, said, verdict) in table {
            let expected = (said.iter().map(|s| (*s).to_owned()).collect(), verdict.to_owned());
            assert_eq!(run(mechanism, initial, answers), expected, "{initial:?} {answers:?}");
        }
    }

    #[test]
    fn scram() {
        // RFC 7677 §3.
        let first = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
        let last = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        let (said, verdict) = run(Mechanism::ScramSha256, Some(first), &[last, b""]);
        assert_eq!((said.len(), verdict.as_str()), (2, "user"));
        assert_eq!(said[1], "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        let (said, verdict) = run(Mechanism::ScramSha256, None, &[first, last, b""]);
        assert_eq!((said.len(), verdict.as_str()), (3, "user"));
        assert_eq!(run(Mechanism::ScramSha256, Some(first), &[last, b"x"]).1, "malformed");
        assert_eq!(run(Mechanism::ScramSha256, Some(first), &[&last[..last.len() - 4]]).1, "wrong");
        // A stranger gets as far as the proof.
        let stranger = b"n,,n=stranger,r=rOprNGfwEbeRWgbNEkqO";
        let (said, verdict) = run(Mechanism::ScramSha256, Some(stranger), &[last]);
        assert_eq!((said.len(), verdict.as_str()), (1, "wrong"));
        assert!(said[0].ends_with(",i=4096"), "{said:?}");
        let for_another = b"n,a=root,n=user,r=rOprNGfwEbeRWgbNEkqO";
        assert_eq!(run(Mechanism::ScramSha256, Some(for_another), &[]).1, "wrong");
        // There is nothing to bind to here.
        assert_eq!(run(Mechanism::ScramSha256Plus, Some(b"p=tls-exporter,,n=user,r=x"), &[]).1, "malformed");
        assert_eq!(run(Mechanism::ScramSha256, Some(b"\xff"), &[]).1, "malformed");
    }
}
