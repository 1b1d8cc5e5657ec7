//! ImageFsInfo, from kept counters.

use crate::cri::call::Deadline;
use crate::cri::usage::number;
use crate::cri::{CallError, Front};
use crate::proto::cri as v1;
use crate::state::now_ns;

/// Bytes and inodes of layers and unfinished downloads, and of what containers have written when
/// that was last measured. Kubelet takes the first file system of each; one name for both says that
/// they are one (KEP-4191).
pub(in crate::cri) async fn fs_info(
    front: Front,
    _request: v1::ImageFsInfoRequest,
    _deadline: Deadline,
) -> Result<v1::ImageFsInfoResponse, CallError> {
    let (bytes, inodes) = front.store.layer_usage().await?;
    let (coming, files) = front.store.samples().downloads();
    let held = |count: i64| u64::try_from(count).unwrap_or(0);
    let bytes = held(bytes).saturating_add(coming);
    let inodes = held(inodes).saturating_add(files);
    let usage = |timestamp, bytes, inodes| v1::FilesystemUsage {
        timestamp,
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: front.info.image_root.display().to_string(),
        }),
        used_bytes: number(Some(bytes)),
        inodes_used: number(Some(inodes)),
    };
    let written = front.store.samples().all_layers();
    let written = written.map_or((now_ns(), 0, 0), |all| (all.at, all.bytes, all.inodes));
    Ok(v1::ImageFsInfoResponse {
        image_filesystems: vec![usage(now_ns(), bytes, inodes)],
        container_filesystems: vec![usage(written.0, written.1, written.2)],
    })
}
