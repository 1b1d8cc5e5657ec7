//! One look at a pull or an image.
use super::*;
use crate::state::job::Outcome;
pub(super) async fn pull(_back: &Back, _reference: &str) -> Result<Outcome, ReconcileError> {
    todo!()
}
pub(super) async fn remove(_back: &Back, _id: &str) -> Result<Outcome, ReconcileError> {
    todo!()
}
/// x
pub async fn import(
    _back: &Back,
    _p: &std::path::Path,
    _r: Option<&str>,
) -> Result<Vec<(String, Vec<String>)>, ReconcileError> {
    todo!()
}
