//! Pod sandboxes, one file per verb.

pub mod list;
pub mod remove;
pub mod run;
mod spec;
pub mod status;
pub mod stop;
mod view;

pub(in crate::cri) use spec::{check_config, pod_or_node, wants_user_namespace};
