//! Device rules: lists in cgroup v1, programs in v2; on a machine with both, each by itself.

use std::os::fd::AsFd as _;

use super::*;
use crate::sys::bpf;

/// Opens null and zero, and says which of the two it could: 0 null alone, 1 neither, 2 both.
const NULL_ALONE: &str = "exec 2>&-; (: </dev/null) || exit 1; (: </dev/zero) && exit 2; exit 0";

/// Nothing but the character devices 1:`minors`; 3 is null, 5 zero.
fn only(minors: &[i64]) -> LinuxResources {
    let mut rules = vec![LinuxDeviceCgroup::default()];
    for minor in minors {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(LinuxDeviceType::C))
            .set_major(Some(1));
        rule.set_minor(Some(*minor))
            .set_access(Some("rwm".to_owned()));
        rules.push(rule);
    }
    with(rules)
}

fn everything() -> LinuxResources {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true);
    with(vec![rule])
}

fn with(rules: Vec<LinuxDeviceCgroup>) -> LinuxResources {
    let resources = LinuxResourcesBuilder::default().devices(rules);
    resources.build().unwrap()
}

/// The machine seen without its device controller of v1: programs are what is left. `None` where
/// there is no v2 hierarchy.
fn with_programs(scratch: &Scratch) -> Option<Cgroups> {
    let mut cgroups = scratch.cgroups.clone();
    cgroups
        .v1
        .retain(|v1| !v1.controllers.iter().any(|name| name == "devices"));
    cgroups.unified.is_some().then_some(cgroups)
}

#[test]
fn only_listed_devices_can_be_opened_and_the_list_can_change() {
    let scratch = Scratch::new();
    let leaf = scratch.child("container");
    let Some(dir) = scratch.v1("devices", &leaf) else {
        return;
    };
    scratch.cgroups.ensure(&leaf, Some(&only(&[3, 5]))).unwrap();
    assert_eq!(
        file::read(&dir, "devices.list").unwrap(),
        "c 1:3 rwm\nc 1:5 rwm"
    );
    scratch.cgroups.ensure(&leaf, Some(&only(&[3]))).unwrap();
    assert_eq!(file::read(&dir, "devices.list").unwrap(), "c 1:3 rwm");
    let mut child = scratch.start(&leaf, NULL_ALONE);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn in_v2_a_program_does_the_same_and_one_of_ours_is_enough() {
    let scratch = Scratch::new();
    let leaf = scratch.child("container");
    let Some(cgroups) = with_programs(&scratch) else {
        return;
    };
    let attached = || {
        let dir = std::fs::File::open(cgroups.unified_dir(&leaf).unwrap()).unwrap();
        let programs = bpf::device_programs(dir.as_fd()).unwrap();
        programs
            .into_iter()
            .map(|(name, _)| name)
            .collect::<Vec<_>>()
    };
    cgroups.ensure(&leaf, None).unwrap();
    assert!(attached().is_empty(), "no rules, no program");
    let mut both = start(&cgroups, &leaf, NULL_ALONE);
    assert_eq!(both.wait().unwrap().code(), Some(2));
    for minors in [&[3, 5][..], &[3], &[3]] {
        cgroups.ensure(&leaf, Some(&only(minors))).unwrap();
        assert_eq!(attached(), ["quilt_devices"]);
    }
    let mut child = start(&cgroups, &leaf, NULL_ALONE);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // What is below has the same limits, whatever it is allowed itself.
    let below = leaf.join("below").unwrap();
    cgroups.ensure(&below, Some(&only(&[3, 5]))).unwrap();
    let mut child = start(&cgroups, &below, NULL_ALONE);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    cgroups.remove(&below).unwrap();
    cgroups.ensure(&leaf, Some(&everything())).unwrap();
    assert!(
        attached().is_empty(),
        "what allows everything is no program"
    );
}

#[test]
fn a_program_of_somebody_else_stays() {
    let scratch = Scratch::new();
    let leaf = scratch.child("container");
    let Some(cgroups) = with_programs(&scratch) else {
        return;
    };
    cgroups.ensure(&leaf, None).unwrap();
    let dir = std::fs::File::open(cgroups.unified_dir(&leaf).unwrap()).unwrap();
    // Returns 0: nothing may be used.
    let nothing = [(0xb4, 0), (0x95, 0)].map(|(code, immediate)| bpf::Instruction {
        code,
        registers: 0,
        offset: 0,
        immediate,
    });
    let theirs = bpf::load_device_program("theirs", &nothing).unwrap();
    bpf::attach_device_program(dir.as_fd(), theirs.as_fd(), None).unwrap();
    for resources in [only(&[3]), everything()] {
        cgroups.ensure(&leaf, Some(&resources)).unwrap();
        let programs = bpf::device_programs(dir.as_fd()).unwrap();
        assert!(programs.iter().any(|(name, _)| name == "theirs"));
        let mut child = start(&cgroups, &leaf, NULL_ALONE);
        assert_eq!(child.wait().unwrap().code(), Some(1));
    }
}

#[test]
fn as_many_devices_as_a_container_may_have_fit_into_a_program() {
    let scratch = Scratch::new();
    let leaf = scratch.child("container");
    let Some(cgroups) = with_programs(&scratch) else {
        return;
    };
    let minors: Vec<i64> = (0..4110).collect();
    cgroups.ensure(&leaf, Some(&only(&minors))).unwrap();
    let mut child = start(&cgroups, &leaf, NULL_ALONE);
    assert_eq!(child.wait().unwrap().code(), Some(2));
}
