//! Destinations that operators have suspended, on disk.
//!
//! Owns: `SPOOL/suspended.json` and the table of what stands in it. Promises: a change is on the disk
//! (written beside, synced, renamed, directory synced) before it is in force and before anybody is told;
//! a file that cannot be read keeps the server from starting, because mail must not flow to a suspended
//! destination for want of a file. Must not: hold mail back itself; the shards do.
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, bail};

use crate::clock::WallTime;
use crate::control::SuspensionView;
use crate::limits;
use crate::mail::address::Domain;

const NAME: &str = "suspended.json";

/// See the module.
pub struct Suspensions {
    spool: PathBuf,
    table: Mutex<BTreeMap<Domain, SuspensionView>>,
}

impl Suspensions {
    /// Reads the file; none is the same as an empty one.
    pub fn open(spool: &Path) -> anyhow::Result<Suspensions> {
        let path = spool.join(NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => b"[]".into(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let listed: Vec<SuspensionView> = serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is damaged, so it is not known which destinations are suspended: mend it, or delete it to deliver to all",
                path.display()
            )
        })?;
        let mut table = BTreeMap::new();
        for view in listed {
            let domain = Domain::parse(view.destination.as_bytes())
                .with_context(|| format!("{}: {:?} is not a domain", path.display(), view.destination))?;
            table.insert(domain, view);
        }
        Ok(Suspensions { spool: spool.to_owned(), table: Mutex::new(table) })
    }

    /// What is in force at `now`, by name.
    pub fn list(&self, now: WallTime) -> Vec<(Domain, SuspensionView)> {
        let table = self.table.lock().expect("no holder panics");
        table
            .iter()
            .filter(|(_, view)| is_in_force(view, now))
            .map(|(d, view)| (d.clone(), view.clone()))
            .collect()
    }

    pub fn get(&self, domain: &Domain, now: WallTime) -> Option<SuspensionView> {
        let table = self.table.lock().expect("no holder panics");
        table.get(domain).filter(|view| is_in_force(view, now)).cloned()
    }

    /// Suspends a destination, or changes until when and why. Blocks on the disk.
    pub fn add(&self, domain: Domain, view: SuspensionView, now: WallTime) -> anyhow::Result<()> {
        self.change(now, |table| {
            if table.len() >= limits::SUSPENSIONS && !table.contains_key(&domain) {
                bail!("{} destinations are suspended already: resume some first", table.len());
            }
            table.insert(domain, view);
            Ok(true)
        })
        .map(drop)
    }

    /// Ends a suspension; false if there was none. Blocks on the disk.
    pub fn remove(&self, domain: &Domain, now: WallTime) -> anyhow::Result<bool> {
        self.change(now, |table| Ok(table.remove(domain).is_some()))
    }

    fn change(
        &self,
        now: WallTime,
        change: impl FnOnce(&mut BTreeMap<Domain, SuspensionView>) -> anyhow::Result<bool>,
    ) -> anyhow::Result<bool> {
        let mut table = self.table.lock().expect("no holder panics");
        let mut next = table.clone();
        next.retain(|_, view| is_in_force(view, now));
        if !change(&mut next)? {
            return Ok(false);
        }
        self.write(&next).with_context(|| format!("cannot write {}", self.spool.join(NAME).display()))?;
        *table = next;
        Ok(true)
    }

    fn write(&self, table: &BTreeMap<Domain, SuspensionView>) -> anyhow::Result<()> {
        let fresh = self.spool.join(format!("{NAME}.new"));
        let text = serde_json::to_vec_pretty(&table.values().collect::<Vec<_>>())?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&fresh, self.spool.join(NAME))?;
        crate::ring::sync_directory(&self.spool)?;
        Ok(())
    }
}

fn is_in_force(view: &SuspensionView, now: WallTime) -> bool {
    view.until.is_none_or(|until| until.0 > now)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::control::Timestamp;

    const NOW: WallTime = WallTime(1_700_000_000_000_000);

    fn view(name: &str, until: Option<u64>) -> (Domain, SuspensionView) {
        let view = SuspensionView {
            destination: name.into(),
            since: Timestamp(NOW),
            until: until.map(|secs| Timestamp(WallTime(NOW.0 + secs * 1_000_000))),
            reason: "they asked for it".into(),
        };
        (Domain::parse(name.as_bytes()).expect("a domain"), view)
    }

    fn names(suspensions: &Suspensions, now: WallTime) -> Vec<String> {
        suspensions.list(now).into_iter().map(|(_, view)| view.destination).collect()
    }

    #[test]
    fn what_is_suspended_lasts_and_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let suspensions = Suspensions::open(dir.path()).expect("none yet");
        for (name, until) in [("b.example", None), ("a.example", Some(60)), ("c.example", None)] {
            let (domain, view) = view(name, until);
            suspensions.add(domain, view, NOW).expect("written");
        }
        assert!(suspensions.remove(&view("c.example", None).0, NOW).expect("written"));
        assert!(!suspensions.remove(&view("c.example", None).0, NOW).expect("nothing to write"));
        let again = Suspensions::open(dir.path()).expect("readable");
        assert_eq!(names(&again, NOW), ["a.example", "b.example"]);
        let later = WallTime(NOW.0 + 60_000_000);
        assert_eq!(names(&again, later), ["b.example"]);
        assert!(again.get(&view("a.example", None).0, later).is_none());
        let mode = fs::metadata(dir.path().join(NAME)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!dir.path().join(format!("{NAME}.new")).exists());
    }

    #[test]
    fn a_damaged_file_is_no_empty_file() {
        let dir = tempfile::tempdir().expect("a directory");
        for text in [
            "",
            "[{}]",
            "[",
            r#"[{"destination":"a..b","since":"1970-01-01T00:00:00Z","until":null,"reason":""}]"#,
        ] {
            fs::write(dir.path().join(NAME), text).expect("written");
            let error = Suspensions::open(dir.path()).err().expect("refused");
            assert!(format!("{error:#}").contains(NAME), "{error:#}");
        }
    }

    #[test]
    fn a_change_that_cannot_be_written_is_not_in_force() {
        let dir = tempfile::tempdir().expect("a directory");
        let suspensions = Suspensions::open(dir.path()).expect("none yet");
        fs::remove_dir_all(dir.path()).expect("gone");
        let (domain, view) = view("a.example", None);
        assert!(suspensions.add(domain, view, NOW).is_err());
        assert_eq!(names(&suspensions, NOW), Vec::<String>::new());
    }
}
