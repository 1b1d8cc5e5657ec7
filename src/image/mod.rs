//! Images: references, registries, and layers on disk.
pub mod digest;
pub mod reference;
#[cfg(test)]
pub(crate) mod testing;
pub mod unpack;
/// TEMP
#[derive(Debug, thiserror::Error)]
#[error("temp")]
pub struct ImageError;
/// TEMP
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageConfig {
    /// x
    pub certs_d: std::path::PathBuf,
}
/// TEMP
pub struct ImageDriver;
impl ImageDriver {
    /// TEMP
    pub fn new(_: &std::path::Path, _: ImageConfig) -> Result<Self, ImageError> {
        Ok(Self)
    }
    /// TEMP
    pub fn layer_path(&self, _: &str) -> std::path::PathBuf {
        todo!()
    }
    /// TEMP
    pub fn remove_layer(&self, _: &str) -> Result<(), ImageError> {
        todo!()
    }
    /// TEMP
    pub fn list_layers(&self) -> Result<Vec<String>, ImageError> {
        todo!()
    }
}
