//! The fuzz targets' corpora, replayed. The targets of `pktio`, `synproxy`, `control` and `tools` are replayed there.

use harness::replay;
use unit::fuzzing;

#[test]
fn any_frame_is_parsed_as_others_parse_it() {
    replay("parser", fuzzing::parser);
}

#[test]
fn any_options_are_translated_with_their_checksum() {
    replay("options", fuzzing::options);
}

#[test]
fn any_first_bytes_of_a_service_are_read_to_an_end() {
    replay("first_bytes", fuzzing::first_bytes);
}

#[test]
fn any_sequence_of_frames_is_survived_and_forgotten() {
    replay("engine", fuzzing::engine);
}

#[test]
fn any_state_is_taken_over_as_far_as_it_makes_sense() {
    replay("state", fuzzing::state);
}

#[test]
fn any_text_is_accepted_or_rejected_with_an_error() {
    replay("configuration", fuzzing::configuration);
}

#[test]
fn any_list_of_networks_is_read_back_as_it_is_written_or_rejected_with_its_lines() {
    replay("networks", fuzzing::networks);
}

#[test]
fn any_capture_file_is_read_as_far_as_it_is_whole() {
    replay("capture", fuzzing::capture);
}
