//! Who a process runs as: names and numbers looked up in the image's passwd(5) and group(5).
//!
//! Pure but for a closure that reads the two files, which are an image's and therefore hostile.
//! A number needs no entry; a name without one is an error that names it. Nothing of the host's
//! user database is ever consulted.

use serde::{Deserialize, Serialize};

use super::error::{LaunchError, stage};
use super::plan::PlanUser;

/// The user a process runs as, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups. Begins with `gid`: a process that could shed its primary group would
    /// escape permissions that exclude that group.
    pub groups: Vec<u32>,
}

/// What the lookup yields.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) identity: Identity,
    /// The home directory of the user's entry, else `/`.
    pub(super) home: Vec<u8>,
}

/// The files that a lookup may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Database {
    Passwd,
    Group,
}

impl Database {
    /// Where it is in an image.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Passwd => "/etc/passwd",
            Self::Group => "/etc/group",
        }
    }
}

/// Finds out who `plan` means. `read` gives the content of a file, empty if there is none.
pub(super) fn resolve(
    plan: &PlanUser,
    mut read: impl FnMut(Database) -> Result<Vec<u8>, LaunchError>,
) -> Result<Account, LaunchError> {
    let (wanted_user, wanted_group) = split(plan);
    let passwd = read(Database::Passwd)?;
    let entry = passwd_entries(&passwd).find(|entry| entry.is(wanted_user));
    let uid = match (&entry, number(wanted_user)) {
        (Some(entry), _) => entry.uid,
        (None, Some(uid)) => uid,
        (None, None) => return Err(unknown("user", wanted_user, Database::Passwd)),
    };
    let needs_groups =
        plan.merge_image_groups || wanted_group.is_some_and(|group| number(group).is_none());
    let group_file = if needs_groups {
        read(Database::Group)?
    } else {
        Vec::new()
    };
    let gid = match wanted_group {
        None => entry.as_ref().map_or(0, |entry| entry.gid),
        Some(wanted) => group_entries(&group_file)
            .find(|group| group.name == wanted.as_bytes())
            .map(|group| group.gid)
            .or_else(|| number(wanted))
            .ok_or_else(|| unknown("group", wanted, Database::Group))?,
    };
    let mut groups = vec![gid];
    let image_groups = entry
        .as_ref()
        .filter(|_| plan.merge_image_groups)
        .into_iter();
    let image_groups = image_groups.flat_map(|entry| {
        group_entries(&group_file)
            .filter(|group| group.has(entry.name))
            .map(|group| group.gid)
    });
    for group in plan.additional_gids.iter().copied().chain(image_groups) {
        if group == u32::MAX {
            return Err(LaunchError::invalid(
                stage::USER,
                format!("group {group} is reserved"),
            ));
        }
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    let home = entry
        .map(|entry| entry.home)
        .filter(|home| home.starts_with(b"/"));
    let home = home.unwrap_or(b"/").to_vec();
    Ok(Account {
        identity: Identity { uid, gid, groups },
        home,
    })
}

/// User and group as asked for; an image may have written both into one string.
fn split(plan: &PlanUser) -> (&str, Option<&str>) {
    let (user, group) = match (plan.user.split_once(':'), &plan.group) {
        (Some((user, group)), None) => (user, Some(group)),
        (_, group) => (plan.user.as_str(), group.as_deref()),
    };
    let user = if user.is_empty() { "0" } else { user };
    (user, group.filter(|group| !group.is_empty()))
}

/// An id; the largest number means "no change" to the kernel (setresuid(2)) and is none.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

fn unknown(what: &str, name: &str, database: Database) -> LaunchError {
    let path = database.path();
    let message = if name.bytes().all(|byte| byte.is_ascii_digit()) {
        format!("{what} {name} is out of range")
    } else {
        format!("{what} {name:?} is not in the image's {path}")
    };
    LaunchError::invalid(stage::USER, message)
}

/// One line of passwd(5): `name:password:uid:gid:gecos:home:shell`.
struct PasswdEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

impl PasswdEntry<'_> {
    fn is(&self, wanted: &str) -> bool {
        self.name == wanted.as_bytes() || number(wanted) == Some(self.uid)
    }
}

/// One line of group(5): `name:password:gid:member,member`.
struct GroupEntry<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl GroupEntry<'_> {
    fn has(&self, user: &[u8]) -> bool {
        self.members
            .split(|byte| *byte == b',')
            .any(|member| member.trim_ascii() == user)
    }
}

/// Entries of a well-formed line each; other lines (comments, NIS) are passed over.
fn passwd_entries(file: &[u8]) -> impl Iterator<Item = PasswdEntry<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        fields.next()?;
        let uid = id(fields.next()?)?;
        let gid = id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(PasswdEntry {
            name,
            uid,
            gid,
            home,
        })
    })
}

fn group_entries(file: &[u8]) -> impl Iterator<Item = GroupEntry<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        fields.next()?;
        let gid = id(fields.next()?)?;
        Some(GroupEntry {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    })
}

/// Lines, without those that hold a NUL: a home directory with one could not be passed on.
fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.contains(&0))
}

fn id(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok().and_then(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# comment\n\
        web:x:33:44:Web:/srv/web:/bin/false\nbroken:x:\n1234:x:7:8::/n:/bin/sh\n";
    const GROUP: &[u8] = b"root:x:0:\nweb:x:44:\nlogs:x:50:web, other\nmore:x:51:other,web\n";

    fn plan(user: &str, group: Option<&str>) -> PlanUser {
        PlanUser {
            user: user.into(),
            group: group.map(Into::into),
            ..PlanUser::default()
        }
    }

    fn lookup(plan: &PlanUser) -> Result<Account, LaunchError> {
        resolve(plan, |database| {
            Ok(match database {
                Database::Passwd => PASSWD.to_vec(),
                Database::Group => GROUP.to_vec(),
            })
        })
    }

    fn ids(plan: &PlanUser) -> (u32, u32, Vec<u32>) {
        let identity = lookup(plan).expect("resolves").identity;
        (identity.uid, identity.gid, identity.groups)
    }

    #[test]
    fn nothing_means_root() {
        assert_eq!(ids(&plan("", None)), (0, 0, vec![0]));
        assert_eq!(lookup(&plan("", None)).expect("resolves").home, b"/root");
    }

    #[test]
    fn names_and_numbers_find_the_same_entry() {
        assert_eq!(ids(&plan("web", None)), (33, 44, vec![44]));
        assert_eq!(ids(&plan("33", None)), (33, 44, vec![44]));
        assert_eq!(ids(&plan("web:logs", None)), (33, 50, vec![50]));
        assert_eq!(ids(&plan("web", Some("9"))), (33, 9, vec![9]));
    }

    #[test]
    fn a_number_needs_no_entry() {
        let account = lookup(&plan("4000", Some("4001"))).expect("resolves");
        assert_eq!(
            account.identity,
            Identity {
                uid: 4000,
                gid: 4001,
                groups: vec![4001]
            }
        );
        assert_eq!(account.home, b"/");
    }

    #[test]
    fn a_name_without_an_entry_is_an_error_that_names_it() {
        let error = lookup(&plan("bob", None)).expect_err("unknown");
        assert_eq!(
            error.message,
            "user \"bob\" is not in the image's /etc/passwd"
        );
        let error = lookup(&plan("web", Some("crew"))).expect_err("unknown");
        assert_eq!(
            error.message,
            "group \"crew\" is not in the image's /etc/group"
        );
    }

    #[test]
    fn ids_that_the_kernel_reserves_are_refused() {
        assert!(lookup(&plan("4294967295", None)).is_err());
        assert!(lookup(&plan("4294967296", None)).is_err());
        assert!(lookup(&plan("0", Some("4294967295"))).is_err());
        let mut extra = plan("0", None);
        extra.additional_gids = vec![u32::MAX];
        assert!(lookup(&extra).is_err());
    }

    #[test]
    fn image_groups_are_merged_only_when_asked_for() {
        let mut merged = plan("web", None);
        merged.additional_gids = vec![7, 50];
        assert_eq!(ids(&merged).2, [44, 7, 50]);
        merged.merge_image_groups = true;
        assert_eq!(ids(&merged).2, [44, 7, 50, 51]);
    }

    proptest! {
        #[test]
        fn hostile_files_never_yield_a_reserved_id(
            passwd in proptest::collection::vec(any::<u8>(), 0..400),
            group in "[a-z:0-9,\n]{0,200}",
            user in "[a-z0-9:]{0,12}",
        ) {
            let mut wanted = plan(&user, None);
            wanted.merge_image_groups = true;
            let account = resolve(&wanted, |database| Ok(match database {
                Database::Passwd => passwd.clone(),
                Database::Group => group.clone().into_bytes(),
            }));
            if let Ok(account) = account {
                prop_assert!(account.identity.uid != u32::MAX);
                prop_assert!(!account.identity.groups.contains(&u32::MAX));
                prop_assert!(account.home.starts_with(b"/") && !account.home.contains(&0));
            }
        }
    }
}
