//! Signals by name, as image configs and the interface write them (signal(7)).

/// SIGTERM, the default of a stop.
pub const TERM: i32 = 15;
/// SIGKILL.
pub const KILL: i32 = 9;
/// glibc's SIGRTMIN and SIGRTMAX on Linux.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The standard signals of Linux on x86 and ARM, by number from 1.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// Reads `TERM`, `SIGTERM`, `15`, `RTMIN+3`, `SIGRTMAX-1`, in any case.
#[must_use]
pub fn parse(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let name = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        other => other,
    };
    if let Some(index) = NAMES.iter().position(|known| *known == name) {
        return i32::try_from(index + 1).ok();
    }
    let number = match name {
        "RTMIN" => RTMIN,
        "RTMAX" => RTMAX,
        _ => {
            if let Some(above) = name.strip_prefix("RTMIN+") {
                RTMIN.checked_add(above.parse::<u8>().ok()?.into())?
            } else {
                RTMAX.checked_sub(name.strip_prefix("RTMAX-")?.parse::<u8>().ok()?.into())?
            }
        }
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// `SIGTERM` for 15; real-time signals are named from SIGRTMIN.
#[must_use]
pub fn name(number: i32) -> String {
    let index = usize::try_from(number - 1).ok();
    match index.and_then(|index| NAMES.get(index)) {
        Some(name) => format!("SIG{name}"),
        None if number == RTMIN => "SIGRTMIN".into(),
        None => format!("SIGRTMIN+{}", number - RTMIN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree_both_ways() {
        for number in (1..=31).chain(RTMIN..=RTMAX) {
            assert_eq!(parse(&name(number)), Some(number));
        }
        assert_eq!(parse("term"), Some(15));
        assert_eq!(parse("SIGRTMAX-1"), Some(63));
        for bad in ["", "0", "65", "SIG", "RTMIN+40", "NOPE", "-1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
