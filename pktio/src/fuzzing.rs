//! The bodies of the fuzz targets for what the kernel says of interfaces, and for what is noted of them. Each takes the fuzzer's input and panics
//! when a promise is broken.

pub use crate::netdev::fuzzing::{netlink, originals};

#[cfg(test)]
mod tests {
    use harness::replay;

    #[test]
    fn any_message_of_the_kernel_is_read_to_an_end() {
        replay("netlink", super::netlink);
    }

    #[test]
    fn any_file_about_an_interface_is_read_back_as_it_is_written_or_says_nothing() {
        replay("originals", super::originals);
    }
}
