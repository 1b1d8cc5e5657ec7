//! ImageFsInfo, from kept counters.

use crate::cri::call::Deadline;
use crate::cri::{CallError, Front};
use crate::proto::cri as v1;
use crate::state::now_ns;

/// Bytes and inodes of unpacked layers. Kubelet takes the first file system.
pub(in crate::cri) async fn fs_info(
    front: Front,
    _request: v1::ImageFsInfoRequest,
    _deadline: Deadline,
) -> Result<v1::ImageFsInfoResponse, CallError> {
    let (bytes, inodes) = front.store.layer_usage().await?;
    let number = |value: i64| {
        Some(v1::UInt64Value {
            value: u64::try_from(value).unwrap_or(0),
        })
    };
    let usage = |mountpoint: &std::path::Path, bytes, inodes| v1::FilesystemUsage {
        timestamp: now_ns(),
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: mountpoint.display().to_string(),
        }),
        used_bytes: number(bytes),
        inodes_used: number(inodes),
    };
    Ok(v1::ImageFsInfoResponse {
        image_filesystems: vec![usage(&front.info.image_root, bytes, inodes)],
        // The same file system; writable layers are added up with the resources.
        container_filesystems: Vec::new(),
    })
}
