//! The table of settings as flags of `serve` and `check`.
//!
//! Owns: the way from `config::SETTINGS` to clap and back to texts, and reading `--config` and the
//! environment. Promises: every setting is a flag, with its variable and default in the help. Must
//! not: interpret values; that they are right is found out once, in `config`.
use std::io::Read;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

use crate::config::{Effective, Given, Kind, Problem, SETTINGS, Setting, System};
use crate::limits;

/// Settings as the command line gave them.
#[derive(Clone, Debug, Default)]
pub struct SettingArgs {
    given: Given,
    file: Option<PathBuf>,
}

impl SettingArgs {
    /// Lays flags, environment, file and defaults over each other. Fails only when the file cannot be
    /// read; what is wrong in it comes back as problems.
    pub fn load(self) -> anyhow::Result<(Effective, Vec<Problem>)> {
        let file = match &self.file {
            Some(path) => Some((path.display().to_string(), read(path)?)),
            None => None,
        };
        let file = file.as_ref().map(|(path, text)| (path.as_str(), text.as_str()));
        let variable = |name: &str| std::env::var(name).ok();
        Ok(Effective::gather(self.given, &variable, file, &System::ask()))
    }
}

fn read(path: &PathBuf) -> anyhow::Result<String> {
    let cannot = || format!("--config: cannot read {}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(cannot)?;
    let read = file.take(limits::CONFIG_FILE_BYTES + 1).read_to_string(&mut text).with_context(cannot)?;
    anyhow::ensure!(
        read as u64 <= limits::CONFIG_FILE_BYTES,
        "--config: {} is larger than 1 MiB",
        path.display()
    );
    Ok(text)
}

fn flag(setting: &'static Setting) -> Arg {
    let help =
        format!("{} [default: {}] [env: {}]", setting.help, setting.default_in_words(), setting.variable());
    let arg = Arg::new(setting.name).long(setting.name).value_name(setting.value_name).help(help);
    match setting.kind {
        Kind::One | Kind::Commas => arg.action(ArgAction::Set),
        Kind::Many => arg.action(ArgAction::Append).help(format!(
            "{}; may be repeated [default: {}] [env: {}]",
            setting.help,
            setting.default_in_words(),
            setting.variable()
        )),
        Kind::Switch => {
            arg.action(ArgAction::Set).num_args(0..=1).require_equals(true).default_missing_value("true")
        }
    }
}

impl clap::Args for SettingArgs {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .env("RINGPOST_CONFIG")
            .hide_env(true)
            .help("TOML file with any of these settings; keys are flag names without dashes [default: none] [env: RINGPOST_CONFIG]");
        command.args(SETTINGS.iter().map(flag)).arg(file).after_help(
            "A flag wins over its environment variable, that over the file, that over the default; a list is \
             replaced whole. Lists in the environment are separated by spaces. `ringpost check` shows the result.\n\n\
             RINGPOST_LOG sets what is logged on standard error: error, warn, info (default), debug or trace.",
        )
    }

    fn augment_args_for_update(command: Command) -> Command {
        SettingArgs::augment_args(command)
    }
}

impl FromArgMatches for SettingArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<SettingArgs, clap::Error> {
        let mut args = SettingArgs::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in SETTINGS {
            if let Some(texts) = matches.get_many::<String>(setting.name) {
                self.given.insert(setting.name, texts.cloned().collect());
            }
        }
        self.file = matches.get_one::<PathBuf>("config").cloned();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        settings: SettingArgs,
    }

    #[test]
    fn flags_become_texts() {
        let line = "x --listen 127.0.0.1:1 --listen 127.0.0.1:2 --allow-private-mx --event-log - --retry-schedule 1m,2m";
        let given = Line::try_parse_from(line.split(' ')).expect("understood").settings.given;
        let expected: [(&str, &[&str]); 4] = [
            ("listen", &["127.0.0.1:1", "127.0.0.1:2"]),
            ("allow-private-mx", &["true"]),
            ("event-log", &["-"]),
            ("retry-schedule", &["1m,2m"]),
        ];
        assert_eq!(given.len(), expected.len());
        for (name, texts) in expected {
            assert_eq!(given[name], texts, "{name}");
        }
        let given =
            Line::try_parse_from(["x", "--allow-private-mx=false"]).expect("understood").settings.given;
        assert_eq!(given["allow-private-mx"], ["false"]);
    }

    #[test]
    fn the_help_names_every_setting_with_variable_and_default() {
        use clap::CommandFactory;
        let help = Line::command().term_width(4000).render_long_help().to_string();
        for setting in SETTINGS {
            let variable = format!("[env: {}]", setting.variable());
            let default = format!("[default: {}]", setting.default_in_words());
            let found = help
                .lines()
                .any(|l| l.contains(setting.help) && l.contains(&variable) && l.contains(&default));
            assert!(found && help.contains(&format!("--{}", setting.name)), "{}", setting.name);
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let large = dir.path().join("large.toml");
        std::fs::write(&large, vec![b'#'; 2 << 20]).expect("written");
        for (file, part) in [(dir.path().join("none.toml"), "cannot read"), (large, "larger than 1 MiB")] {
            let args = SettingArgs { given: Given::new(), file: Some(file) };
            let error = args.load().expect_err("an error");
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
    }
}
