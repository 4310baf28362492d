//! The body of the fuzz target for what anybody may send to the statistics page. It takes the fuzzer's input and panics when a promise is broken.

pub use crate::metrics::http::fuzzing::http;

#[cfg(test)]
mod tests {
    use harness::replay;

    #[test]
    fn any_request_has_one_whole_answer_that_repeats_nothing_of_it() {
        replay("http", super::http);
    }
}
