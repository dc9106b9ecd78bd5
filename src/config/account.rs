//! From the names of a user and a group to the numbers that a command gets, as login(1) and systemd give them: with all
//! groups that the user is in (`initgroups(3)`).
//!
//! They are looked up once, when the pool is loaded, in whatever the machine has for it (`nsswitch.conf(5)`).

use std::io;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist, getgroups};

use crate::executor::UserIds;

/// Who there is on this machine.
pub(super) trait Accounts {
    /// The user and groups that this process runs as.
    fn own(&self) -> UserIds;

    /// Finds a user by its name or number.
    ///
    /// # Errors
    ///
    /// When the machine cannot tell.
    fn user(&self, name: &str) -> io::Result<Option<Account>>;

    /// Finds a group's number by its name or number.
    ///
    /// # Errors
    ///
    /// When the machine cannot tell.
    fn group(&self, name: &str) -> io::Result<Option<u32>>;

    /// All groups that a user is in, and the one given.
    ///
    /// # Errors
    ///
    /// When the machine cannot tell.
    fn groups(&self, account: &Account, gid: u32) -> io::Result<Vec<u32>>;
}

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Who a pool wants its commands to run as, as it is written.
pub(super) struct Wanted<'a> {
    pub(super) user: Option<&'a str>,
    pub(super) group: Option<&'a str>,
}

/// What is wrong with a wanted user or group: its key, and what is expected there.
pub(super) type Refused = (&'static str, String);

/// Finds who commands run as; `None` when that is the worker's own user already.
///
/// A group without a user is taken on beside the worker's own user and its other groups.
///
/// # Errors
///
/// Everything that is wrong: what there is not, or what a worker that is not root cannot give.
pub(super) fn resolve(wanted: &Wanted<'_>, accounts: &impl Accounts) -> Result<Option<UserIds>, Vec<Refused>> {
    let own = accounts.own();
    let user = wanted.user.map(|name| find_user(name, &own, accounts)).transpose();
    let group = wanted.group.map(|name| find_group(name, &own, accounts)).transpose();
    let (user, group) = match (user, group) {
        (Ok(user), Ok(group)) => (user, group),
        (user, group) => return Err([user.err(), group.err()].into_iter().flatten().collect()),
    };
    if own.uid != ROOT {
        return Ok(None); // whoever was named is who it is
    }
    match (user, group) {
        (None, None) => Ok(None),
        (None, Some(gid)) => Ok(Some(UserIds { gid, ..own })),
        (Some(account), group) => {
            let gid = group.unwrap_or(account.gid);
            let groups = accounts.groups(&account, gid).map_err(|error| {
                vec![(
                    "user",
                    format!("failed to look up the groups of {:?}: {error}", account.name),
                )]
            })?;
            let uid = account.uid;
            Ok(Some(UserIds { uid, gid, groups }))
        }
    }
}

/// The one user who may give a process another.
const ROOT: u32 = 0;

fn find_user(name: &str, own: &UserIds, accounts: &impl Accounts) -> Result<Account, Refused> {
    let found = accounts.user(name).map_err(|error| unknown("user", name, &error))?;
    let account = found.ok_or_else(|| absent("user", name))?;
    match own.uid {
        ROOT => Ok(account),
        uid if uid == account.uid => Ok(account),
        uid => Err(not_root("user", name, uid)),
    }
}

fn find_group(name: &str, own: &UserIds, accounts: &impl Accounts) -> Result<u32, Refused> {
    let found = accounts.group(name).map_err(|error| unknown("group", name, &error))?;
    let gid = found.ok_or_else(|| absent("group", name))?;
    match own.uid {
        ROOT => Ok(gid),
        _ if gid == own.gid => Ok(gid),
        _ => Err(not_root("group", name, own.gid)),
    }
}

fn unknown(key: &'static str, name: &str, error: &io::Error) -> Refused {
    (key, format!("failed to look up the {key} {name:?}: {error}"))
}

fn absent(key: &'static str, name: &str) -> Refused {
    (
        key,
        format!("expected a {key} that this machine has, by its name or number, got {name:?}"),
    )
}

fn not_root(key: &'static str, name: &str, own: u32) -> Refused {
    (
        key,
        format!("expected the worker's own {key} ({own}), or a worker that runs as root, got {name:?}"),
    )
}

/// The machine that this process runs on.
pub(super) struct Machine;

impl Accounts for Machine {
    fn own(&self) -> UserIds {
        UserIds {
            uid: Uid::effective().as_raw(),
            gid: Gid::effective().as_raw(),
            // It fails for no reason but a buffer that is too small, which is not ours.
            groups: numbers(getgroups().unwrap_or_default()),
        }
    }

    fn user(&self, name: &str) -> io::Result<Option<Account>> {
        let found = match name.parse() {
            Ok(uid) => User::from_uid(Uid::from_raw(uid)),
            Err(_) => User::from_name(name),
        };
        Ok(found?.map(|user| Account {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        }))
    }

    fn group(&self, name: &str) -> io::Result<Option<u32>> {
        let found = match name.parse() {
            Ok(gid) => Group::from_gid(Gid::from_raw(gid)),
            Err(_) => Group::from_name(name),
        };
        Ok(found?.map(|group| group.gid.as_raw()))
    }

    fn groups(&self, account: &Account, gid: u32) -> io::Result<Vec<u32>> {
        let name = std::ffi::CString::new(&*account.name)?;
        Ok(numbers(getgrouplist(&name, Gid::from_raw(gid))?))
    }
}

fn numbers(groups: Vec<Gid>) -> Vec<u32> {
    groups.into_iter().map(Gid::as_raw).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A machine with a user `render` (1001) of groups `render` (1001) and `video` (44), and a group `audio` (29).
    pub(in crate::config) struct Fake {
        pub(in crate::config) uid: u32,
    }

    impl Accounts for Fake {
        fn own(&self) -> UserIds {
            UserIds {
                uid: self.uid,
                gid: self.uid,
                groups: vec![self.uid, 4],
            }
        }

        fn user(&self, name: &str) -> io::Result<Option<Account>> {
            match name {
                "render" | "1001" => Ok(Some(Account {
                    name: "render".to_owned(),
                    uid: 1001,
                    gid: 1001,
                })),
                "broken" => Err(io::Error::from_raw_os_error(5)),
                _ => Ok(None),
            }
        }

        fn group(&self, name: &str) -> io::Result<Option<u32>> {
            Ok(match name {
                "render" => Some(1001),
                "video" | "44" => Some(44),
                "audio" => Some(29),
                _ => None,
            })
        }

        fn groups(&self, account: &Account, gid: u32) -> io::Result<Vec<u32>> {
            assert_eq!(account.name, "render");
            Ok(if gid == 44 { vec![44] } else { vec![gid, 44] })
        }
    }

    /// Who `user` and `group` are for a worker that runs as `uid`.
    fn resolved(uid: u32, user: Option<&str>, group: Option<&str>) -> Result<Option<UserIds>, Vec<String>> {
        resolve(&Wanted { user, group }, &Fake { uid }).map_err(|refused| {
            refused
                .into_iter()
                .map(|(key, message)| format!("{key}: {message}"))
                .collect()
        })
    }

    fn ids(uid: u32, gid: u32, groups: &[u32]) -> Result<Option<UserIds>, Vec<String>> {
        Ok(Some(UserIds {
            uid,
            gid,
            groups: groups.to_vec(),
        }))
    }

    #[test]
    fn a_user_brings_its_group_and_all_its_others() {
        assert_eq!(resolved(0, Some("render"), None), ids(1001, 1001, &[1001, 44]));
        assert_eq!(resolved(0, Some("1001"), None), ids(1001, 1001, &[1001, 44]));
    }

    #[test]
    fn a_group_takes_the_place_of_the_users_own() {
        assert_eq!(resolved(0, Some("render"), Some("audio")), ids(1001, 29, &[29, 44]));
        assert_eq!(resolved(0, Some("render"), Some("44")), ids(1001, 44, &[44]));
    }

    #[test]
    fn a_group_alone_leaves_the_user_and_its_other_groups() {
        assert_eq!(resolved(0, None, Some("video")), ids(0, 44, &[0, 4]));
    }

    #[test]
    fn nothing_wanted_is_nothing_to_set() {
        assert_eq!(resolved(0, None, None), Ok(None));
        assert_eq!(resolved(1001, None, None), Ok(None));
    }

    #[test]
    fn what_there_is_not_is_refused_all_at_once() {
        assert_eq!(
            resolved(0, Some("rendre"), Some("4711")).unwrap_err(),
            [
                r#"user: expected a user that this machine has, by its name or number, got "rendre""#,
                r#"group: expected a group that this machine has, by its name or number, got "4711""#,
            ]
        );
        let broken = resolved(0, Some("broken"), None).unwrap_err();
        assert!(
            broken[0].starts_with(r#"user: failed to look up the user "broken": "#),
            "{broken:?}"
        );
    }

    #[test]
    fn only_root_gives_another_user_or_group() {
        assert_eq!(
            resolved(1000, Some("render"), Some("video")).unwrap_err(),
            [
                r#"user: expected the worker's own user (1000), or a worker that runs as root, got "render""#,
                r#"group: expected the worker's own group (1000), or a worker that runs as root, got "video""#,
            ]
        );
        assert_eq!(
            resolved(1001, Some("render"), Some("render")),
            Ok(None),
            "it is both already"
        );
    }

    #[test]
    fn this_machine_knows_its_users() {
        let root = Account {
            name: "root".to_owned(),
            uid: 0,
            gid: 0,
        };
        assert_eq!(Machine.user("root").unwrap(), Some(root.clone()));
        assert_eq!(Machine.user("0").unwrap(), Some(root.clone()));
        assert_eq!(Machine.user("no such user").unwrap(), None);
        assert_eq!(Machine.group("0").unwrap(), Some(0));
        assert_eq!(Machine.group("no such group").unwrap(), None);
        assert!(Machine.groups(&root, 7).unwrap().contains(&7));
        assert_eq!(Machine.own().uid, rustix::process::geteuid().as_raw());
    }
}
