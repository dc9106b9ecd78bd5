//! The one place that reads our own environment (besides clap, which reads the twins of flags).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::app::ServiceManagerOptions;
use crate::message::TraceContext;

/// The caller's environment, for commands that run as if the caller had started them. What is not UTF-8 is left out, and
/// so are our own settings: the broker's address holds a password.
pub(super) fn of_the_caller() -> BTreeMap<String, String> {
    #[expect(clippy::disallowed_methods, reason = "this file owns the environment")]
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| !name.starts_with("SYNTHEX_"))
        .collect()
}

/// The trace that we are a part of, as who started us says by the variables `TRACEPARENT` and `TRACESTATE`.
pub(super) fn trace() -> Option<TraceContext> {
    #[expect(clippy::disallowed_methods, reason = "this file owns the environment")]
    let variable = |name: &str| std::env::var_os(name)?.into_string().ok();
    TraceContext::parse(&variable("TRACEPARENT")?, variable("TRACESTATE").as_deref())
}

/// Where a program of this user keeps what is to outlive it: the directory that systemd has made for it
/// (`StateDirectory=`), else the one of the XDG base directory specification, root's in `/var/lib`. `None` for a user
/// without a home.
pub(super) fn state_folder() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "this file owns the environment")]
    let variable = |name: &str| std::env::var_os(name);
    state_folder_of(variable, rustix::process::geteuid().is_root())
}

/// Whether the terminal can do no more than write lines.
pub(super) fn terminal_is_dumb() -> bool {
    #[expect(clippy::disallowed_methods, reason = "this file owns the environment")]
    let kind = std::env::var_os("TERM");
    kind.is_none_or(|kind| kind == "dumb")
}

fn state_folder_of(variable: impl Fn(&str) -> Option<OsString>, is_root: bool) -> Option<PathBuf> {
    // One that is not absolute is to be ignored, says the specification.
    let folder = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let set = |name| variable(name).and_then(folder);
    // Of several, which `StateDirectory=` may name, the first.
    let first = |folders: OsString| {
        folder(OsStr::from_bytes(folders.as_bytes().split(|byte| *byte == b':').next()?).to_owned())
    };
    if let Some(state) = variable("STATE_DIRECTORY").and_then(first) {
        return Some(state);
    }
    let state = set("XDG_STATE_HOME").or_else(|| match is_root {
        true => Some("/var/lib".into()),
        false => set("HOME").map(|home| home.join(".local/state")),
    });
    state.map(|state| state.join("synthex"))
}

/// Whether this user wants colours (`NO_COLOR`, <https://no-color.org>): any text in it says no.
pub(super) fn wants_colour() -> bool {
    #[expect(clippy::disallowed_methods, reason = "this file owns the environment")]
    let no_colour = std::env::var_os("NO_COLOR");
    no_colour.is_none_or(|text| text.is_empty())
}

/// Where the service manager that started this process wants to hear how it is (`sd_notify(3)`), and how often
/// (`sd_watchdog_enabled(3)`). `None` without one.
pub(super) fn service_manager() -> Option<ServiceManagerOptions> {
    #[expect(clippy::disallowed_methods, reason = "this file owns the environment")]
    let variable = |name: &str| std::env::var_os(name);
    service_manager_of(variable, std::process::id())
}

fn service_manager_of(variable: impl Fn(&str) -> Option<OsString>, own: u32) -> Option<ServiceManagerOptions> {
    let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
    // A watchdog that was set for another process is none of ours.
    let is_ours = variable("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(own.into());
    Some(ServiceManagerOptions {
        socket: variable("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())?,
        watchdog: number("WATCHDOG_USEC")
            .filter(|microseconds| is_ours && *microseconds > 0)
            .map(Duration::from_micros),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_kept_where_the_system_wants_it() {
        let of = |variables: &[(&str, &str)], is_root| {
            let value = |name: &str| {
                variables
                    .iter()
                    .find(|(set, _)| *set == name)
                    .map(|(_, value)| value.into())
            };
            let folder = state_folder_of(value, is_root);
            folder.map(|path| path.to_str().unwrap().to_owned()).unwrap_or_default()
        };
        let home = ("HOME", "/home/u");
        let xdg = ("XDG_STATE_HOME", "/xdg");
        let systemd = ("STATE_DIRECTORY", "/var/lib/private/a:/var/lib/private/b");
        assert_eq!(of(&[home, xdg, systemd], false), "/var/lib/private/a");
        assert_eq!(of(&[home, xdg], false), "/xdg/synthex");
        assert_eq!(of(&[home, xdg], true), "/xdg/synthex");
        assert_eq!(of(&[home], false), "/home/u/.local/state/synthex");
        assert_eq!(
            of(&[home, ("XDG_STATE_HOME", "")], false),
            "/home/u/.local/state/synthex"
        );
        assert_eq!(of(&[home, ("XDG_STATE_HOME", "relative")], true), "/var/lib/synthex");
        assert_eq!(of(&[], false), "");
    }

    #[test]
    fn a_watchdog_is_ours_if_it_is_set_for_this_process() {
        let of = |pid: Option<&str>, usec: Option<&str>| {
            let value = |name: &str| match name {
                "NOTIFY_SOCKET" => Some("/run/notify".into()),
                "WATCHDOG_PID" => pid.map(Into::into),
                "WATCHDOG_USEC" => usec.map(Into::into),
                _ => None,
            };
            service_manager_of(value, 7).unwrap().watchdog
        };
        let second = Some(Duration::from_secs(1));
        assert_eq!(of(Some("7"), Some("1000000")), second);
        assert_eq!(of(None, Some("1000000")), second);
        assert_eq!(of(Some("8"), Some("1000000")), None);
        assert_eq!(of(Some("7"), Some("0")), None);
        assert_eq!(of(Some("7"), None), None);
        assert!(service_manager_of(|_| None, 7).is_none());
    }
}
