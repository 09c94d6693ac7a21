//! Dropping privileges (`--user`).
//!
//! Owns: the change from root to the named user. Promises: groups, gid and uid are all changed, in
//! that order, before any other thread exists and before a foreign byte is parsed. Must not: be called
//! once threads run: Linux keeps credentials per thread.
use anyhow::{Context, bail};
use rustix::process::{Gid, Uid};

/// A user of `/etc/passwd`.
struct Account {
    uid: u32,
    gid: u32,
}

fn find(passwd: &str, name: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { uid, gid })
    })
}

/// Becomes `name`, whose files the spool's must then be.
pub fn become_user(name: &str, spool: &std::path::Path) -> anyhow::Result<()> {
    let passwd = std::fs::read_to_string("/etc/passwd").context("reading /etc/passwd for --user")?;
    let Some(account) = find(&passwd, name) else {
        bail!("--user {name}: no such user in /etc/passwd; create it (useradd --system {name})");
    };
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    if rustix::process::geteuid() == uid {
        return Ok(());
    }
    std::os::unix::fs::chown(spool, Some(account.uid), Some(account.gid))
        .with_context(|| format!("--user {name}: giving {} to that user", spool.display()))?;
    let refused = "needs root (start as root, or leave --user out and start as that user)";
    rustix::thread::set_thread_groups(&[gid]).with_context(|| format!("--user {name}: {refused}"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).with_context(|| format!("--user {name}: {refused}"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).with_context(|| format!("--user {name}: {refused}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_by_their_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nmailer:x:998:997::/:/usr/sbin/nologin\nbroken:x\n";
        let account = find(passwd, "mailer").expect("listed");
        assert_eq!((account.uid, account.gid), (998, 997));
        assert!(find(passwd, "mail").is_none());
        assert!(find(passwd, "broken").is_none());
    }
}
