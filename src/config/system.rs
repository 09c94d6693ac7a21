//! Facts of the machine that defaults are computed from.
//!
//! Owns: [`System`]. Promises: asked once at start, then a value, so that the same settings on the
//! same facts give the same configuration. Must not: fail; a fact that cannot be had has a cautious
//! stand-in.
use std::fs;

/// What defaults depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// The kernel's node name.
    pub hostname: String,
    /// Cores this process may run on.
    pub cores: usize,
    /// Memory this process may use: the machine's, or less where a control group says so.
    pub memory_bytes: u64,
}

impl System {
    /// Asks the running system.
    pub fn ask() -> System {
        let info = rustix::system::sysinfo();
        let installed = info.totalram.saturating_mul(u64::from(info.mem_unit.max(1)));
        System {
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: control_group_memory().map_or(installed, |limit| limit.min(installed)),
        }
    }
}

/// The limit of this process's own control group (version 2), if it has one.
fn control_group_memory() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let limit =
        fs::read_to_string(format!("/sys/fs/cgroup{}/memory.max", path.trim_end_matches('/'))).ok()?;
    limit.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_system_has_cores_and_memory() {
        let system = System::ask();
        assert!(system.cores >= 1 && system.memory_bytes > 1 << 20, "{system:?}");
    }
}
