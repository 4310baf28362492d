//! The prefetch hint: the one place of this crate with `unsafe`, because the intrinsic is declared so.

#![allow(unsafe_code)]

/// Asks for the cache line that holds the first byte of `value`. A hint: it changes nothing that can be observed but time.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction reads nothing and cannot fault, whatever the address; ours comes from a live reference besides.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(core::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
