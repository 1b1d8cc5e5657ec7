//! What the allocator keeps of memory that was freed.
#![expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]

/// Gives freed memory back to the kernel (malloc_trim(3)): glibc keeps what many threads have
/// allocated and freed, such as the windows and buffers of a pull, while the process lives.
///
/// It holds up allocations for the milliseconds it takes: for after great works only. Does nothing
/// with another C library.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number only, and locks what it walks through.
    unsafe {
        libc::malloc_trim(0);
    }
}
