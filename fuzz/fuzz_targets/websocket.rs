//! Messages of Kubernetes' subprotocols, and a whole connection of a WebSocket, in memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quilt::streaming::fuzz::websocket(data));
