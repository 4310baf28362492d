//! Every complaint, word for word: the place, the line, the caret, what was expected, what was meant.

use confparse::{Errors, Level, parse};

/// A text that is refused, and everything that is said of it.
macro_rules! refused {
    ($name:ident, $text:expr, $($line:literal),+) => {
        #[test]
        fn $name() {
            let Errors { complaints, omitted } = parse($text, "conf.txt").expect_err("refused");
            assert!(complaints.iter().any(|complaint| complaint.level == Level::Error));
            assert_eq!(Errors { complaints, omitted }.to_string(), [$($line),+].join("\n"));
        }
    };
}

/// A text that is accepted with a warning or a note.
macro_rules! warned {
    ($name:ident, $text:expr, $($line:literal),+) => {
        #[test]
        fn $name() {
            let warnings = parse($text, "conf.txt").expect("accepted").warnings;
            assert!(warnings.iter().all(|complaint| complaint.level < Level::Error));
            let said: Vec<String> = warnings.iter().map(ToString::to_string).collect();
            assert_eq!(said.join("\n"), [$($line),+].join("\n"));
        }
    };
}

refused! {
    an_empty_file,
    "",
    "conf.txt:1:1: the file is empty",
    " 1 | ",
    "   | ^",
    "   = expected `synproxyconf = {`"
}

refused! {
    a_file_of_comments_only,
    "# nothing\n",
    "conf.txt:1:10: the file ends too early",
    " 1 | # nothing",
    "   |          ^",
    "   = expected `synproxyconf = {`"
}

refused! {
    a_file_without_its_frame,
    "mss = { 1 };\n",
    "conf.txt:1:1: `mss` is out of place",
    " 1 | mss = { 1 };",
    "   | ^^^",
    "   = expected `synproxyconf = {`"
}

refused! {
    a_misspelt_frame,
    "synproxyconfig = { };\n",
    "conf.txt:1:1: `synproxyconfig` is out of place",
    " 1 | synproxyconfig = { };",
    "   | ^^^^^^^^^^^^^^",
    "   = expected `synproxyconf = {`; did you mean `synproxyconf`?"
}

refused! {
    a_frame_without_brace,
    "synproxyconf = \n",
    "conf.txt:1:15: the file ends too early",
    " 1 | synproxyconf = ",
    "   |               ^",
    "   = expected `{`"
}

refused! {
    text_after_the_end,
    "synproxyconf = { };\nport = 1;\n",
    "conf.txt:2:1: `port` comes after the end",
    " 2 | port = 1;",
    "   | ^^^^",
    "   = expected the end of the file"
}

refused! {
    a_second_frame,
    "synproxyconf = { }; synproxyconf = { };\n",
    "conf.txt:1:21: `synproxyconf` comes after the end",
    " 1 | synproxyconf = { }; synproxyconf = { };",
    "   |                     ^^^^^^^^^^^^",
    "   = expected the end of the file"
}

refused! {
    the_last_semicolon_missing,
    "synproxyconf = { }\n",
    "conf.txt:1:19: a `;` is missing after the last `}`",
    " 1 | synproxyconf = { }",
    "   |                   ^"
}

refused! {
    the_last_brace_missing,
    "synproxyconf = {\n  port = 1;\n",
    "conf.txt:2:12: the file ends too early",
    " 2 |   port = 1;",
    "   |            ^",
    "   = expected a key or `}`"
}

refused! {
    an_open_comment,
    "synproxyconf = {\n /* never\n};\n",
    "conf.txt:2:2: this comment is never closed",
    " 2 |  /* never",
    "   |  ^",
    "   = expected `*/` further down"
}

refused! {
    an_open_string,
    "synproxyconf = {\n user = \"root;\n};\n",
    "conf.txt:2:9: this string is never closed",
    " 2 |  user = \"root;",
    "   |         ^",
    "   = expected `\"` further down"
}

refused! {
    a_stray_character,
    "synproxyconf = {\n  port = $;\n};\n",
    "conf.txt:2:10: `$` is out of place",
    " 2 |   port = $;",
    "   |          ^",
    "   = expected a value"
}

refused! {
    a_missing_value,
    "synproxyconf = {\n  port = ;\n};\n",
    "conf.txt:2:10: `;` is out of place",
    " 2 |   port = ;",
    "   |          ^",
    "   = expected a value"
}

refused! {
    a_missing_equals_sign,
    "synproxyconf = {\n  port 1;\n};\n",
    "conf.txt:2:8: `1` is out of place",
    " 2 |   port 1;",
    "   |        ^",
    "   = expected `=`, `;`, a key or `}`"
}

refused! {
    a_doubled_semicolon,
    "synproxyconf = {\n  port = 1;;\n};\n",
    "conf.txt:2:12: `;` is out of place",
    " 2 |   port = 1;;",
    "   |            ^",
    "   = expected a key or `}`"
}

refused! {
    a_list_in_a_section_for_a_number,
    "synproxyconf = {\n  timeouts = { connected = { 1 }; };\n};\n",
    "conf.txt:2:28: `connected` does not take a list",
    " 2 |   timeouts = { connected = { 1 }; };",
    "   |                            ^^^^^",
    "   = expected a number from 1 to 2147483647 (seconds)"
}

refused! {
    a_word_alone_in_a_section,
    "synproxyconf = {\n  timeouts = { connected; };\n};\n",
    "conf.txt:2:25: `;` is out of place",
    " 2 |   timeouts = { connected; };",
    "   |                         ^",
    "   = expected `=`, `,`, a number or `}`"
}

refused! {
    a_missing_semicolon,
    "synproxyconf = {\n  port = 1 // no end\n  own_mss = 2;\n};\n",
    "conf.txt:2:11: a `;` is missing after `port`",
    " 2 |   port = 1 // no end",
    "   |           ^"
}

refused! {
    a_missing_comma,
    "synproxyconf = {\n  mss = { 536 1460 };\n};\n",
    "conf.txt:2:14: a `,` is missing in `mss`",
    " 2 |   mss = { 536 1460 };",
    "   |              ^"
}

refused! {
    an_unknown_key,
    "synproxyconf = {\n  halfopen_cach_max = 5;\n};\n",
    "conf.txt:2:3: unknown key `halfopen_cach_max`",
    " 2 |   halfopen_cach_max = 5;",
    "   |   ^^^^^^^^^^^^^^^^^",
    "   = did you mean `halfopen_cache_max`?"
}

refused! {
    an_unknown_key_like_nothing,
    "synproxyconf = {\n  quux = 5;\n};\n",
    "conf.txt:2:3: unknown key `quux`",
    " 2 |   quux = 5;",
    "   |   ^^^^",
    "   = expected a key of `synproxyconf`"
}

refused! {
    an_unknown_key_in_another_case,
    "synproxyconf = {\n  OWN-MSS = 5;\n};\n",
    "conf.txt:2:3: unknown key `OWN-MSS`",
    " 2 |   OWN-MSS = 5;",
    "   |   ^^^^^^^",
    "   = did you mean `own_mss`?"
}

refused! {
    keywords_end_where_words_end,
    "synproxyconf = {\n  own_msss = 5; test_connectionsx;\n};\n",
    "conf.txt:2:3: unknown key `own_msss`",
    " 2 |   own_msss = 5; test_connectionsx;",
    "   |   ^^^^^^^^",
    "   = did you mean `own_mss`?",
    "conf.txt:2:17: unknown key `test_connectionsx`",
    " 2 |   own_msss = 5; test_connectionsx;",
    "   |                 ^^^^^^^^^^^^^^^^^",
    "   = did you mean `test_connections`?"
}

refused! {
    an_unknown_section,
    "synproxyconf = {\n  timeout = { connected = 5; };\n};\n",
    "conf.txt:2:3: unknown key `timeout`",
    " 2 |   timeout = { connected = 5; };",
    "   |   ^^^^^^^",
    "   = did you mean `timeouts`?"
}

refused! {
    a_key_of_a_section_outside,
    "synproxyconf = {\n  connected = 5;\n};\n",
    "conf.txt:2:3: unknown key `connected`",
    " 2 |   connected = 5;",
    "   |   ^^^^^^^^^",
    "   = `connected` belongs in `timeouts = { … };`"
}

refused! {
    a_key_of_the_top_level_inside,
    "synproxyconf = {\n  ratehash = { own_mss = 5; };\n};\n",
    "conf.txt:2:16: unknown key `own_mss` in `ratehash`",
    " 2 |   ratehash = { own_mss = 5; };",
    "   |                ^^^^^^^",
    "   = `own_mss` belongs outside the sections"
}

refused! {
    an_unknown_key_in_a_section,
    "synproxyconf = {\n  ratehash = { sise = 4; flavour = 1; };\n};\n",
    "conf.txt:2:16: unknown key `sise` in `ratehash`",
    " 2 |   ratehash = { sise = 4; flavour = 1; };",
    "   |                ^^^^",
    "   = did you mean `size`?",
    "conf.txt:2:26: unknown key `flavour` in `ratehash`",
    " 2 |   ratehash = { sise = 4; flavour = 1; };",
    "   |                          ^^^^^^^",
    "   = expected one of `size`, `timer_period_usec`, `timer_add`, `initial_tokens`, `network_prefix`, `network_prefix6`"
}

refused! {
    a_number_for_a_section,
    "synproxyconf = {\n  timeouts = 5;\n};\n",
    "conf.txt:2:14: `timeouts` is a section",
    " 2 |   timeouts = 5;",
    "   |              ^",
    "   = expected `timeouts = { connected = …; };`"
}

refused! {
    a_list_for_a_section,
    "synproxyconf = {\n  timeouts = { 5 };\n};\n",
    "conf.txt:2:14: `timeouts` is a section",
    " 2 |   timeouts = { 5 };",
    "   |              ^^^^^",
    "   = expected `timeouts = { connected = …; };`"
}

refused! {
    an_unknown_word,
    "synproxyconf = {\n  sackmode = hashport;\n};\n",
    "conf.txt:2:14: `hashport` is nothing `sackmode` knows",
    " 2 |   sackmode = hashport;",
    "   |              ^^^^^^^^",
    "   = expected `default`, `haship`, `hashipport` or `commanded`; did you mean `hashipport`?"
}

refused! {
    an_unknown_word_like_nothing,
    "synproxyconf = {\n  sackmode = quux;\n};\n",
    "conf.txt:2:14: `quux` is nothing `sackmode` knows",
    " 2 |   sackmode = quux;",
    "   |              ^^^^",
    "   = expected `default`, `haship`, `hashipport` or `commanded`"
}

refused! {
    a_switch_of_another_language,
    "synproxyconf = {\n  own_sack = true;\n};\n",
    "conf.txt:2:14: `true` is nothing `own_sack` knows",
    " 2 |   own_sack = true;",
    "   |              ^^^^",
    "   = expected `enable` or `disable`; did you mean `enable`?"
}

refused! {
    a_number_for_a_word,
    "synproxyconf = {\n  own_sack = 1;\n};\n",
    "conf.txt:2:14: `own_sack` does not take a number",
    " 2 |   own_sack = 1;",
    "   |              ^",
    "   = expected `enable` or `disable`; did you mean `enable`?"
}

refused! {
    a_string_for_a_word,
    "synproxyconf = {\n  sackmode = \"haship\";\n};\n",
    "conf.txt:2:14: `sackmode` does not take a string",
    " 2 |   sackmode = \"haship\";",
    "   |              ^^^^^^^^",
    "   = expected `default`, `haship`, `hashipport` or `commanded`; a word stands without quotes"
}

refused! {
    a_word_for_a_number,
    "synproxyconf = {\n  own_mss = big;\n};\n",
    "conf.txt:2:13: `own_mss` does not take a word",
    " 2 |   own_mss = big;",
    "   |             ^^^",
    "   = expected a number from 1 to 65535 (bytes)"
}

refused! {
    a_string_for_a_number,
    "synproxyconf = {\n  own_mss = \"1460\";\n};\n",
    "conf.txt:2:13: `own_mss` does not take a string",
    " 2 |   own_mss = \"1460\";",
    "   |             ^^^^^^",
    "   = expected a number from 1 to 65535 (bytes); a number stands without quotes"
}

refused! {
    a_list_for_a_number,
    "synproxyconf = {\n  own_mss = { 1460 };\n};\n",
    "conf.txt:2:13: `own_mss` does not take a list",
    " 2 |   own_mss = { 1460 };",
    "   |             ^^^^^^^^",
    "   = expected a number from 1 to 65535 (bytes)"
}

refused! {
    a_section_for_a_number,
    "synproxyconf = {\n  own_mss = { a = 1460; };\n};\n",
    "conf.txt:2:13: `own_mss` does not take a section",
    " 2 |   own_mss = { a = 1460; };",
    "   |             ^^^^^^^^^^^^^",
    "   = expected a number from 1 to 65535 (bytes)"
}

refused! {
    a_number_for_a_list,
    "synproxyconf = {\n  mss = 1460;\n};\n",
    "conf.txt:2:9: `mss` does not take a number",
    " 2 |   mss = 1460;",
    "   |         ^^^^",
    "   = expected a list of rising numbers up to 65535 (bytes); write `{ 1460 }`"
}

refused! {
    a_word_for_a_name,
    "synproxyconf = {\n  user = nobody;\n};\n",
    "conf.txt:2:10: `user` does not take a word",
    " 2 |   user = nobody;",
    "   |          ^^^^^^",
    "   = expected a name in quotes, or a number; 0 is no change; write `\"nobody\"`"
}

refused! {
    no_name,
    "synproxyconf = {\n  user = \"\";\n};\n",
    "conf.txt:2:10: `\"\"` can be nobody's name",
    " 2 |   user = \"\";",
    "   |          ^^",
    "   = expected a name in quotes, or a number; 0 is no change"
}

refused! {
    a_name_with_a_line_end,
    "synproxyconf = {\n  user = \"a\nb\";\n};\n",
    "conf.txt:2:10: `\"a�b\"` can be nobody's name",
    " 2 |   user = \"a",
    "   |          ^^",
    "   = expected a name in quotes, or a number; 0 is no change"
}

refused! {
    a_bare_key,
    "synproxyconf = {\n  own_mss;\n};\n",
    "conf.txt:2:3: `own_mss` needs a value",
    " 2 |   own_mss;",
    "   |   ^^^^^^^",
    "   = expected a number from 1 to 65535 (bytes)"
}

refused! {
    a_flag_with_a_value,
    "synproxyconf = {\n  test_connections = 1;\n};\n",
    "conf.txt:2:22: `test_connections` takes no value",
    " 2 |   test_connections = 1;",
    "   |                      ^",
    "   = expected `test_connections;`"
}

refused! {
    too_little,
    "synproxyconf = {\n  own_mss = 0;\n};\n",
    "conf.txt:2:13: `0` is too little for `own_mss`",
    " 2 |   own_mss = 0;",
    "   |             ^",
    "   = expected a number from 1 to 65535 (bytes)"
}

refused! {
    too_much,
    "synproxyconf = {\n  own_mss = 65536;\n};\n",
    "conf.txt:2:13: `65536` is too much for `own_mss`",
    " 2 |   own_mss = 65536;",
    "   |             ^^^^^",
    "   = expected a number from 1 to 65535 (bytes)"
}

refused! {
    far_too_much,
    "synproxyconf = {\n  own_mss = 99999999999999999999999999;\n};\n",
    "conf.txt:2:13: `99999999999999999999999999` is too much for `own_mss`",
    " 2 |   own_mss = 99999999999999999999999999;",
    "   |             ^^^^^^^^^^^^^^^^^^^^^^^^^^",
    "   = expected a number from 1 to 65535 (bytes)"
}

refused! {
    a_scale_beyond_14,
    "synproxyconf = {\n  own_wscale = 15; wscale = { 0, 200 };\n};\n",
    "conf.txt:2:16: `15` is too much for `own_wscale`",
    " 2 |   own_wscale = 15; wscale = { 0, 200 };",
    "   |                ^^",
    "   = expected a number from 0 to 14",
    "conf.txt:2:34: `200` is too much for `wscale`",
    " 2 |   own_wscale = 15; wscale = { 0, 200 };",
    "   |                                  ^^^",
    "   = expected a list of rising numbers up to 14, the first 0"
}

refused! {
    no_power_of_two,
    "synproxyconf = {\n  learnhashsize = 131000;\n};\n",
    "conf.txt:2:19: `learnhashsize` must be a power of two, and 131000 is none",
    " 2 |   learnhashsize = 131000;",
    "   |                   ^^^^^^",
    "   = expected 65536 or 131072, for example"
}

refused! {
    a_table_of_more_places_than_there_are_numbers_for,
    "synproxyconf = {\n  conntablesize = 268435456;\n};\n",
    "conf.txt:2:19: `268435456` is too much for `conntablesize`",
    " 2 |   conntablesize = 268435456;",
    "   |                   ^^^^^^^^^",
    "   = expected a number from 1 to 268435455 (buckets)"
}

refused! {
    a_negative_number,
    "synproxyconf = {\n  own_mss = -1;\n};\n",
    "conf.txt:2:13: `-1` is no plain number",
    " 2 |   own_mss = -1;",
    "   |             ^^",
    "   = expected digits alone, in bytes"
}

refused! {
    a_hexadecimal_number,
    "synproxyconf = {\n  own_mss = 0x5b4;\n};\n",
    "conf.txt:2:13: `0x5b4` is no plain number",
    " 2 |   own_mss = 0x5b4;",
    "   |             ^^^^^",
    "   = expected digits alone, in bytes; write `1460`"
}

refused! {
    a_fraction,
    "synproxyconf = {\n  timeouts = { syn_retx = 0.5; };\n};\n",
    "conf.txt:2:27: `0.5` is no plain number",
    " 2 |   timeouts = { syn_retx = 0.5; };",
    "   |                           ^^^",
    "   = expected digits alone, in seconds"
}

refused! {
    seconds_with_a_unit,
    "synproxyconf = {\n  timeouts = { connected = 1s; one_fin = 2h; };\n};\n",
    "conf.txt:2:28: `1s` is no plain number",
    " 2 |   timeouts = { connected = 1s; one_fin = 2h; };",
    "   |                            ^^",
    "   = expected digits alone, in seconds; write `1`",
    "conf.txt:2:42: `2h` is no plain number",
    " 2 |   timeouts = { connected = 1s; one_fin = 2h; };",
    "   |                                          ^^",
    "   = expected digits alone, in seconds; write `7200`"
}

refused! {
    microseconds_with_a_unit,
    "synproxyconf = {\n  ratehash = { timer_period_usec = 500ms; };\n};\n",
    "conf.txt:2:36: `500ms` is no plain number",
    " 2 |   ratehash = { timer_period_usec = 500ms; };",
    "   |                                    ^^^^^",
    "   = expected digits alone, in microseconds; write `500000`"
}

refused! {
    a_count_with_a_unit,
    "synproxyconf = {\n  conntablesize = 4k; halfopen_cache_max = 4k;\n};\n",
    "conf.txt:2:19: `4k` is no plain number",
    " 2 |   conntablesize = 4k; halfopen_cache_max = 4k;",
    "   |                   ^^",
    "   = expected digits alone, in buckets; write `4000`",
    "conf.txt:2:44: `4k` is no plain number",
    " 2 |   conntablesize = 4k; halfopen_cache_max = 4k;",
    "   |                                            ^^",
    "   = expected digits alone, in entries; write `4000`"
}

refused! {
    a_list_that_falls,
    "synproxyconf = {\n  mss = { 1460, 1200 };\n};\n",
    "conf.txt:2:17: `mss` values must rise, and 1200 comes after 1460",
    " 2 |   mss = { 1460, 1200 };",
    "   |                 ^^^^"
}

refused! {
    an_empty_list,
    "synproxyconf = {\n  mss = { };\n};\n",
    "conf.txt:2:9: `mss` is empty",
    " 2 |   mss = { };",
    "   |         ^^^",
    "   = expected a list of rising numbers up to 65535 (bytes)"
}

refused! {
    a_word_in_a_list,
    "synproxyconf = {\n  mss = { 536, big };\n};\n",
    "conf.txt:2:16: `big` is no number",
    " 2 |   mss = { 536, big };",
    "   |                ^^^",
    "   = expected a list of rising numbers up to 65535 (bytes)"
}

refused! {
    scales_that_do_not_begin_with_none,
    "synproxyconf = {\n  wscale = { 1, 2 };\n};\n",
    "conf.txt:2:14: `wscale` must begin with 0, and this is 1",
    " 2 |   wscale = { 1, 2 };",
    "   |              ^",
    "   = expected a list of rising numbers up to 14, the first 0"
}

refused! {
    too_many_mss_for_timestamps,
    "synproxyconf = {\n  tsmss = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33 };\n};\n",
    "conf.txt:2:11: `tsmss` has 33 values, and 32 is the most",
    " 2 |   tsmss = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27,…",
    "   |           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^",
    "   = expected a list of rising numbers up to 65535 (bytes), 32 of them at most"
}

refused! {
    tables_too_large_for_a_cookie,
    "synproxyconf = {\n  mss = { 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99, 100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113, 114, 115, 116, 117, 118, 119, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129, 130, 131, 132, 133, 134, 135, 136, 137, 138, 139, 140, 141, 142, 143, 144, 145, 146, 147, 148, 149, 150, 151, 152, 153, 154, 155, 156, 157, 158, 159, 160, 161, 162, 163, 164, 165, 166, 167, 168, 169, 170, 171, 172, 173, 174, 175, 176, 177, 178, 179, 180, 181, 182, 183, 184, 185, 186, 187, 188, 189, 190, 191, 192, 193, 194, 195, 196, 197, 198, 199, 200, 201, 202, 203, 204, 205, 206, 207, 208, 209, 210, 211, 212, 213, 214, 215, 216, 217, 218, 219, 220, 221, 222, 223, 224, 225, 226, 227, 228, 229, 230, 231, 232, 233, 234, 235, 236, 237, 238, 239, 240, 241, 242, 243, 244, 245, 246, 247, 248, 249, 250, 251, 252, 253, 254, 255, 256, 257, 258, 259, 260, 261, 262, 263, 264, 265, 266, 267, 268, 269, 270, 271, 272, 273, 274, 275, 276, 277, 278, 279, 280, 281, 282, 283, 284, 285, 286, 287, 288, 289, 290, 291, 292, 293, 294, 295, 296, 297, 298, 299, 300, 301, 302, 303, 304, 305, 306, 307, 308, 309, 310, 311, 312, 313, 314, 315, 316, 317, 318, 319, 320, 321, 322, 323, 324, 325, 326, 327, 328, 329, 330, 331, 332, 333, 334, 335, 336, 337, 338, 339, 340, 341, 342, 343, 344, 345, 346, 347, 348, 349, 350, 351, 352, 353, 354, 355, 356, 357, 358, 359, 360, 361, 362, 363 };\n};\n",
    "conf.txt:2:3: `mss` and `wscale` take 13 bits of the cookie, and 12 is the most",
    " 2 |   mss = { 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 88, …",
    "   |   ^^^",
    "   = 2 × (7 scales + none) × 300 MSS values are 4800 combinations; 4096 fit"
}

refused! {
    every_mistake_at_once,
    "synproxyconf = {\n  prot = 1;\n  own_mss = 0\n  user = root;\n  timeouts = { conected = 1; one_fin = 0; };\n};\n",
    "conf.txt:2:3: unknown key `prot`",
    " 2 |   prot = 1;",
    "   |   ^^^^",
    "   = did you mean `port`?",
    "conf.txt:3:13: `0` is too little for `own_mss`",
    " 3 |   own_mss = 0",
    "   |             ^",
    "   = expected a number from 1 to 65535 (bytes)",
    "conf.txt:3:14: a `;` is missing after `own_mss`",
    " 3 |   own_mss = 0",
    "   |              ^",
    "conf.txt:4:10: `user` does not take a word",
    " 4 |   user = root;",
    "   |          ^^^^",
    "   = expected a name in quotes, or a number; 0 is no change; write `\"root\"`",
    "conf.txt:5:16: unknown key `conected` in `timeouts`",
    " 5 |   timeouts = { conected = 1; one_fin = 0; };",
    "   |                ^^^^^^^^",
    "   = did you mean `connected`?",
    "conf.txt:5:40: `0` is too little for `one_fin`",
    " 5 |   timeouts = { conected = 1; one_fin = 0; };",
    "   |                                        ^",
    "   = expected a number from 1 to 2147483647 (seconds)"
}

refused! {
    columns_behind_tabs,
    "synproxyconf = {\n\tport = 1;\t\tprot = 2;\n};\n",
    "conf.txt:2:13: unknown key `prot`",
    " 2 | \tport = 1;\t\tprot = 2;",
    "   | \t         \t\t^^^^",
    "   = did you mean `port`?"
}

refused! {
    a_long_line,
    "synproxyconf = {\n  /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ prot = 2; /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ /* far */ \n};\n",
    "conf.txt:2:403: unknown key `prot`",
    " 2 | …/* far */ /* far */ /* far */ /* far */ /* far */ /* far */ prot = 2; /* far */ /* far */ /* far */ /* far */ …",
    "   |                                                              ^^^^",
    "   = did you mean `port`?"
}

refused! {
    a_word_out_of_place_in_a_list,
    "synproxyconf = {\n  mss = { 536; };\n};\n",
    "conf.txt:2:14: `;` is out of place",
    " 2 |   mss = { 536; };",
    "   |              ^",
    "   = expected `,`, a number or `}`"
}

refused! {
    a_colour_in_a_string,
    "synproxyconf = {\n  user = \"\u{1b}[31m\";\n};\n",
    "conf.txt:2:10: `\"�[31m\"` can be nobody's name",
    " 2 |   user = \"�[31m\";",
    "   |          ^^^^^^^",
    "   = expected a name in quotes, or a number; 0 is no change"
}

refused! {
    control_characters,
    "synproxyconf = {\r\n  pört\u{202e} = \u{1b}[31m;\r\n};\r\n",
    "conf.txt:2:7: `�` is out of place",
    " 2 |   pört� = �[31m;",
    "   |       ^",
    "   = expected `=`, `;`, a key or `}`"
}

refused! {
    a_name_for_a_server,
    "synproxyconf = {\n  early = { \"www.example.net\", \"192.0.2.1 \" };\n};\n",
    "conf.txt:2:13: `www.example.net` is no address",
    " 2 |   early = { \"www.example.net\", \"192.0.2.1 \" };",
    "   |             ^^^^^^^^^^^^^^^^^",
    "   = expected an address; names are not looked up",
    "conf.txt:2:32: `192.0.2.1 ` is no address",
    " 2 |   early = { \"www.example.net\", \"192.0.2.1 \" };",
    "   |                                ^^^^^^^^^^^^",
    "   = expected an IPv4 or IPv6 address, for example 192.0.2.1 or 2001:db8::1"
}

refused! {
    a_server_without_quotes,
    "synproxyconf = {\n  early = { 192.0.2.1, localhost };\n};\n",
    "conf.txt:2:13: `192.0.2.1` is no address in quotes",
    " 2 |   early = { 192.0.2.1, localhost };",
    "   |             ^^^^^^^^^",
    "   = expected `\"192.0.2.1\"`",
    "conf.txt:2:24: `localhost` is no address in quotes",
    " 2 |   early = { 192.0.2.1, localhost };",
    "   |                        ^^^^^^^^^",
    "   = expected a list of addresses or networks in quotes, each with a port or without, 128 of them at most"
}

refused! {
    a_server_outside_a_list,
    "synproxyconf = {\n  early = \"192.0.2.1\"; honest = 192.0.2.2;\n};\n",
    "conf.txt:2:11: `early` does not take a string",
    " 2 |   early = \"192.0.2.1\"; honest = 192.0.2.2;",
    "   |           ^^^^^^^^^^^",
    "   = expected a list of addresses or networks in quotes, each with a port or without, 128 of them at most; write `{ \"192.0.2.1\" }`",
    "conf.txt:2:33: `honest` does not take a number",
    " 2 |   early = \"192.0.2.1\"; honest = 192.0.2.2;",
    "   |                                 ^^^^^^^^^",
    "   = expected a list of addresses or networks in quotes, each with a port or without, 128 of them at most; write `{ \"192.0.2.2\" }`"
}

refused! {
    servers_as_a_section,
    "synproxyconf = {\n  early = { port = 80; };\n};\n",
    "conf.txt:2:11: `early` does not take a section",
    " 2 |   early = { port = 80; };",
    "   |           ^^^^^^^^^^^^^^",
    "   = expected a list of addresses or networks in quotes, each with a port or without, 128 of them at most"
}

refused! {
    a_prefix_too_long,
    "synproxyconf = {\n  early = { \"192.0.2.0/33\", \"2001:db8::/129\" };\n};\n",
    "conf.txt:2:13: `192.0.2.0/33` has a prefix of 33 bits",
    " 2 |   early = { \"192.0.2.0/33\", \"2001:db8::/129\" };",
    "   |             ^^^^^^^^^^^^^^",
    "   = expected 0 to 32 for an IPv4 network",
    "conf.txt:2:29: `2001:db8::/129` has a prefix of 129 bits",
    " 2 |   early = { \"192.0.2.0/33\", \"2001:db8::/129\" };",
    "   |                             ^^^^^^^^^^^^^^^^",
    "   = expected 0 to 128 for an IPv6 network"
}

refused! {
    a_prefix_that_is_no_number,
    "synproxyconf = {\n  early = { \"192.0.2.0/\", \"192.0.2.0/255.255.255.0\" };\n};\n",
    "conf.txt:2:13: `192.0.2.0/` has no number after its `/`",
    " 2 |   early = { \"192.0.2.0/\", \"192.0.2.0/255.255.255.0\" };",
    "   |             ^^^^^^^^^^^^",
    "   = expected 0 to 32",
    "conf.txt:2:27: `192.0.2.0/255.255.255.0` has no number after its `/`",
    " 2 |   early = { \"192.0.2.0/\", \"192.0.2.0/255.255.255.0\" };",
    "   |                           ^^^^^^^^^^^^^^^^^^^^^^^^^",
    "   = expected 0 to 32"
}

refused! {
    a_port_that_nobody_has,
    "synproxyconf = {\n  early = { \"192.0.2.1:0\", \"[2001:db8::1]:65536\", \"192.0.2.1:http\", \"[2001:db8::1]:\" };\n};\n",
    "conf.txt:2:13: `192.0.2.1:0` has port 0",
    " 2 |   early = { \"192.0.2.1:0\", \"[2001:db8::1]:65536\", \"192.0.2.1:http\", \"[2001:db8::1]:\" };",
    "   |             ^^^^^^^^^^^^^",
    "   = expected 1 to 65535",
    "conf.txt:2:28: `[2001:db8::1]:65536` has port 65536",
    " 2 |   early = { \"192.0.2.1:0\", \"[2001:db8::1]:65536\", \"192.0.2.1:http\", \"[2001:db8::1]:\" };",
    "   |                            ^^^^^^^^^^^^^^^^^^^^^",
    "   = expected 1 to 65535",
    "conf.txt:2:51: `192.0.2.1:http` has no number after its last `:`",
    " 2 |   early = { \"192.0.2.1:0\", \"[2001:db8::1]:65536\", \"192.0.2.1:http\", \"[2001:db8::1]:\" };",
    "   |                                                   ^^^^^^^^^^^^^^^^",
    "   = expected a port, 1 to 65535",
    "conf.txt:2:69: `[2001:db8::1]:` has no number after its last `:`",
    " 2 |   early = { \"192.0.2.1:0\", \"[2001:db8::1]:65536\", \"192.0.2.1:http\", \"[2001:db8::1]:\" };",
    "   |                                                                     ^^^^^^^^^^^^^^^^",
    "   = expected a port, 1 to 65535"
}

refused! {
    brackets_that_are_not_right,
    "synproxyconf = {\n  early = { \"[192.0.2.1]:80\", \"[2001:db8::1\", \"[2001:db8::]/32\", \"[2001:db8::]/32:80\", \"[::1]80\" };\n};\n",
    "conf.txt:2:13: `[192.0.2.1]:80` has brackets around an IPv4 address",
    " 2 |   early = { \"[192.0.2.1]:80\", \"[2001:db8::1\", \"[2001:db8::]/32\", \"[2001:db8::]/32:80\", \"[::1]80\" };",
    "   |             ^^^^^^^^^^^^^^^^",
    "   = expected `192.0.2.1:80`",
    "conf.txt:2:31: `[2001:db8::1` has a `[` and no `]`",
    " 2 |   early = { \"[192.0.2.1]:80\", \"[2001:db8::1\", \"[2001:db8::]/32\", \"[2001:db8::]/32:80\", \"[::1]80\" };",
    "   |                               ^^^^^^^^^^^^^^",
    "conf.txt:2:47: `[2001:db8::]/32` goes on after its `]`",
    " 2 |   early = { \"[192.0.2.1]:80\", \"[2001:db8::1\", \"[2001:db8::]/32\", \"[2001:db8::]/32:80\", \"[::1]80\" };",
    "   |                                               ^^^^^^^^^^^^^^^^^",
    "   = expected `2001:db8::/32`",
    "conf.txt:2:66: `[2001:db8::]/32:80` goes on after its `]`",
    " 2 |   early = { \"[192.0.2.1]:80\", \"[2001:db8::1\", \"[2001:db8::]/32\", \"[2001:db8::]/32:80\", \"[::1]80\" };",
    "   |                                                                  ^^^^^^^^^^^^^^^^^^^^",
    "   = expected `[2001:db8::/32]:80`",
    "conf.txt:2:88: `[::1]80` goes on after its `]`",
    " 2 |   early = { \"[192.0.2.1]:80\", \"[2001:db8::1\", \"[2001:db8::]/32\", \"[2001:db8::]/32:80\", \"[::1]80\" };",
    "   |                                                                                        ^^^^^^^^^",
    "   = expected `:` and a port after the `]`"
}

refused! {
    addresses_that_may_have_a_port,
    "synproxyconf = {\n  early = { \"2001:db8::1:443\" }; listen = \"::1:80\";\n  destinations = { { network = \"fd00::a:8080\"; early_window = 1; } };\n};\n",
    "conf.txt:2:13: `2001:db8::1:443` may be an address, or an address and a port",
    " 2 |   early = { \"2001:db8::1:443\" }; listen = \"::1:80\";",
    "   |             ^^^^^^^^^^^^^^^^^",
    "   = expected `[2001:db8::1]:443` for port 443, or `2001:db8:0:0:0:0:1:443` for the address alone",
    "conf.txt:2:43: `::1:80` may be an address, or an address and a port",
    " 2 |   early = { \"2001:db8::1:443\" }; listen = \"::1:80\";",
    "   |                                           ^^^^^^^^",
    "   = expected `listen = \"::1\"; port = 80;` for port 80, or `\"0:0:0:0:0:0:1:80\"` for the address alone",
    "conf.txt:3:32: `fd00::a:8080` may be an address, or an address and a port",
    " 3 |   destinations = { { network = \"fd00::a:8080\"; early_window = 1; } };",
    "   |                                ^^^^^^^^^^^^^^",
    "   = expected `[fd00::a]:8080` for port 8080, or `fd00:0:0:0:0:0:a:8080` for the address alone"
}

refused! {
    a_port_behind_a_network_without_brackets,
    "synproxyconf = {\n  early = { \"2001:db8::/32:443\" };\n};\n",
    "conf.txt:2:13: `2001:db8::/32:443` has a port, but no brackets around the network",
    " 2 |   early = { \"2001:db8::/32:443\" };",
    "   |             ^^^^^^^^^^^^^^^^^^^",
    "   = expected `[2001:db8::/32]:443`"
}

refused! {
    servers_without_commas,
    "synproxyconf = {\n  early = { \"192.0.2.1\" \"192.0.2.2\" };\n};\n",
    "conf.txt:2:24: a `,` is missing in `early`",
    " 2 |   early = { \"192.0.2.1\" \"192.0.2.2\" };",
    "   |                        ^"
}

refused! {
    servers_treated_in_two_ways,
    "synproxyconf = {\n  early = { \"192.0.2.0/24\" };\n  honest = { \"192.0.2.1\", \"::ffff:192.0.2.0/120\" };\n};\n",
    "conf.txt:3:27: `192.0.2.0/24` is in `honest`, and in `early` on line 2",
    " 3 |   honest = { \"192.0.2.1\", \"::ffff:192.0.2.0/120\" };",
    "   |                           ^^^^^^^^^^^^^^^^^^^^^^",
    "   = expected it in one of the two"
}

refused! {
    a_block_for_nobody_and_one_with_a_port_in_its_network,
    "synproxyconf = {\n  destinations = {\n    { handshake = early; },\n    { network = \"192.0.2.1:80\"; }\n  };\n};\n",
    "conf.txt:3:5: this block does not say which servers it is for",
    " 3 |     { handshake = early; },",
    "   |     ^",
    "   = expected `network = \"192.0.2.0/24\";`, for example; `0.0.0.0/0` and `::/0` are all servers",
    "conf.txt:4:17: `network` has a port",
    " 4 |     { network = \"192.0.2.1:80\"; }",
    "   |                 ^^^^^^^^^^^^^^",
    "   = expected `network = \"192.0.2.1\"; port = 80;`"
}

refused! {
    keys_that_do_not_belong_in_a_block,
    "synproxyconf = {\n  destinations = {\n    { network = \"::/0\"; conntablesize = 1; conected = 3; connected = 3; timeouts = 3; prt = 3; }\n  };\n};\n",
    "conf.txt:3:25: unknown key `conntablesize` in a block of `destinations`",
    " 3 |     { network = \"::/0\"; conntablesize = 1; conected = 3; connected = 3; timeouts = 3; prt = 3; }",
    "   |                         ^^^^^^^^^^^^^",
    "   = `conntablesize` is the same for all servers",
    "conf.txt:3:44: unknown key `conected` in a block of `destinations`",
    " 3 |     { network = \"::/0\"; conntablesize = 1; conected = 3; connected = 3; timeouts = 3; prt = 3; }",
    "   |                                            ^^^^^^^^",
    "   = expected `network`, `port`, `vlan`, or a key that may differ from server to server",
    "conf.txt:3:58: unknown key `connected` in a block of `destinations`",
    " 3 |     { network = \"::/0\"; conntablesize = 1; conected = 3; connected = 3; timeouts = 3; prt = 3; }",
    "   |                                                          ^^^^^^^^^",
    "   = `connected` belongs in `timeouts = { … };`",
    "conf.txt:3:84: `timeouts` is a section",
    " 3 |     { network = \"::/0\"; conntablesize = 1; conected = 3; connected = 3; timeouts = 3; prt = 3; }",
    "   |                                                                                    ^",
    "   = expected `timeouts = { connected = …; };`",
    "conf.txt:3:87: unknown key `prt` in a block of `destinations`",
    " 3 |     { network = \"::/0\"; conntablesize = 1; conected = 3; connected = 3; timeouts = 3; prt = 3; }",
    "   |                                                                                       ^^^",
    "   = did you mean `port`?"
}

refused! {
    two_blocks_for_the_same_servers,
    "synproxyconf = {\n  destinations = {\n    { network = \"192.0.2.0/24\"; port = 80; vlan = 7; own_mss = 1; }\n    { network = \"192.0.2.9/24\"; vlan = 7; port = 80; stray = reset; },\n  };\n};\n",
    "conf.txt:3:68: a `,` is missing in `destinations`",
    " 3 |     { network = \"192.0.2.0/24\"; port = 80; vlan = 7; own_mss = 1; }",
    "   |                                                                    ^",
    "conf.txt:4:5: `192.0.2.0/24:80` on VLAN 7 has a block on line 3 already",
    " 4 |     { network = \"192.0.2.9/24\"; vlan = 7; port = 80; stray = reset; },",
    "   |     ^",
    "   = expected all of it in one block",
    "conf.txt:4:17: warning: `192.0.2.9/24` has bits set beyond its prefix",
    " 4 |     { network = \"192.0.2.9/24\"; vlan = 7; port = 80; stray = reset; },",
    "   |                 ^^^^^^^^^^^^^^",
    "   = they do not count; `192.0.2.0/24` is meant"
}

refused! {
    destinations_without_blocks,
    "synproxyconf = {\n  destinations = { network = \"192.0.2.0/24\"; };\n};\n",
    "conf.txt:2:18: `destinations` does not take a section",
    " 2 |   destinations = { network = \"192.0.2.0/24\"; };",
    "   |                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^",
    "   = expected a list of blocks `{ network = \"192.0.2.0/24\"; … }`; each block has braces of its own"
}

warned! {
    a_block_that_settles_nothing,
    "synproxyconf = {\n  destinations = { { network = \"192.0.2.1\"; port = 1; port = 2; } };\n};\n",
    "conf.txt:2:20: warning: this block settles nothing",
    " 2 |   destinations = { { network = \"192.0.2.1\"; port = 1; port = 2; } };",
    "   |                    ^",
    "conf.txt:2:55: warning: `port` was given on line 2 already",
    " 2 |   destinations = { { network = \"192.0.2.1\"; port = 1; port = 2; } };",
    "   |                                                       ^^^^",
    "   = the last one counts"
}

refused! {
    a_colour_in_an_address,
    "synproxyconf = {\n  early = { \"\u{1b}[31m\u{202e}\" };\n};\n",
    "conf.txt:2:13: `�[31m�` is no address",
    " 2 |   early = { \"�[31m�\" };",
    "   |             ^^^^^^^^"
}

refused! {
    no_early_window,
    "synproxyconf = {\n  early_window = 0; held_frames = 65536;\n};\n",
    "conf.txt:2:18: `0` is too little for `early_window`",
    " 2 |   early_window = 0; held_frames = 65536;",
    "   |                  ^",
    "   = expected a number from 1 to 65535 (bytes)",
    "conf.txt:2:35: `65536` is too much for `held_frames`",
    " 2 |   early_window = 0; held_frames = 65536;",
    "   |                                   ^^^^^",
    "   = expected a number from 0 to 65535 (frames)"
}

warned! {
    a_key_given_twice,
    "synproxyconf = {\n  port = 1;\n  port = 2;\n};\n",
    "conf.txt:3:3: warning: `port` was given on line 2 already",
    " 3 |   port = 2;",
    "   |   ^^^^",
    "   = the last one counts"
}

warned! {
    a_list_given_twice,
    "synproxyconf = {\n  mss = { 536, 1460 };\n  mss = { 1200 };\n};\n",
    "conf.txt:3:3: warning: `mss` was given on line 2 already",
    " 3 |   mss = { 1200 };",
    "   |   ^^^",
    "   = the last one counts"
}

warned! {
    equal_neighbours,
    "synproxyconf = {\n  mss = { 536, 536 };\n};\n",
    "conf.txt:2:16: warning: 536 stands twice in `mss`",
    " 2 |   mss = { 536, 536 };",
    "   |                ^^^",
    "   = it takes room in the cookie and says nothing new"
}

warned! {
    an_mss_of_zero,
    "synproxyconf = {\n  mss = { 0, 536 };\n};\n",
    "conf.txt:2:11: warning: an MSS of 0 in `mss` leaves a client no room for data",
    " 2 |   mss = { 0, 536 };",
    "   |           ^",
    "   = expected 64 or more"
}

warned! {
    a_weak_cookie,
    "synproxyconf = {\n  mss = { 216, 536, 1220, 1360, 1400, 1440, 1460, 8940, 8960 };\n};\n",
    "conf.txt:2:3: warning: `mss` and `wscale` take 8 bits of the cookie and leave 23 to its MAC",
    " 2 |   mss = { 216, 536, 1220, 1360, 1400, 1440, 1460, 8940, 8960 };",
    "   |   ^^^",
    "   = 2 × (7 scales + none) × 9 MSS values are 144 combinations; up to 128 leave it 24. With timestamps it keeps 27, whatever the lists are"
}

warned! {
    keys_without_effect,
    "synproxyconf = {\n  ts_bits = 4; tswscale = { 0, 7 }; ldp = { socket_rcvbuf = 1; };\n};\n",
    "conf.txt:2:3: note: `ts_bits` has no effect",
    " 2 |   ts_bits = 4; tswscale = { 0, 7 }; ldp = { socket_rcvbuf = 1; };",
    "   |   ^^^^^^^",
    "   = the time in a timestamp cookie has 20 bits of its own",
    "conf.txt:2:16: note: `tswscale` has no effect",
    " 2 |   ts_bits = 4; tswscale = { 0, 7 }; ldp = { socket_rcvbuf = 1; };",
    "   |                ^^^^^^^^",
    "   = with timestamps every scale is carried exactly",
    "conf.txt:2:45: note: `socket_rcvbuf` has no effect",
    " 2 |   ts_bits = 4; tswscale = { 0, 7 }; ldp = { socket_rcvbuf = 1; };",
    "   |                                             ^^^^^^^^^^^^^",
    "   = our ports size their own rings and sockets"
}

warned! {
    more_tokens_than_a_bucket_holds,
    "synproxyconf = {\n  ratehash = { timer_add = 30; initial_tokens = 20; };\n};\n",
    "conf.txt:2:32: warning: a bucket holds 20 tokens, and each period adds 30",
    " 2 |   ratehash = { timer_add = 30; initial_tokens = 20; };",
    "   |                                ^^^^^^^^^^^^^^",
    "   = what is over is lost; expected `timer_add` up to `initial_tokens`"
}

warned! {
    a_huge_table,
    "synproxyconf = {\n  conntablesize = 268435455;\n};\n",
    "conf.txt:2:3: warning: the flow table takes 255 GiB of memory",
    " 2 |   conntablesize = 268435455;",
    "   |   ^^^^^^^^^^^^^",
    "   = it holds 2147483640 flows"
}

warned! {
    bits_beyond_a_prefix,
    "synproxyconf = {\n  early = { \"192.0.2.10/24\", \"[2001:db8::1/32]:443\" };\n};\n",
    "conf.txt:2:13: warning: `192.0.2.10/24` has bits set beyond its prefix",
    " 2 |   early = { \"192.0.2.10/24\", \"[2001:db8::1/32]:443\" };",
    "   |             ^^^^^^^^^^^^^^^",
    "   = they do not count; `192.0.2.0/24` is meant",
    "conf.txt:2:30: warning: `[2001:db8::1/32]:443` has bits set beyond its prefix",
    " 2 |   early = { \"192.0.2.10/24\", \"[2001:db8::1/32]:443\" };",
    "   |                              ^^^^^^^^^^^^^^^^^^^^^^",
    "   = they do not count; `[2001:db8::/32]:443` is meant"
}

warned! {
    servers_given_twice,
    "synproxyconf = {\n  early = {\n    \"192.0.2.1\",\n    \"192.0.2.1/32\",\n  };\n};\n",
    "conf.txt:4:5: warning: `192.0.2.1` stands twice in `early`",
    " 4 |     \"192.0.2.1/32\",",
    "   |     ^^^^^^^^^^^^^^",
    "   = line 3 has it"
}

warned! {
    held_frames_that_take_most_frames,
    "synproxyconf = {\n  held_frames = 10000;\n  threadcount = 2;\n};\n",
    "conf.txt:2:3: warning: each worker may hold 5000 of its 16384 frames",
    " 2 |   held_frames = 10000;",
    "   |   ^^^^^^^^^^^",
    "   = expected `held_frames` up to 8192, a quarter, so that enough are spare"
}

warned! {
    an_early_handshake_without_held_frames,
    "synproxyconf = {\n  handshake = early;\n  held_frames = 0;\n};\n",
    "conf.txt:3:3: warning: with `held_frames = 0` an early handshake has no place for what clients send",
    " 3 |   held_frames = 0;",
    "   |   ^^^^^^^^^^^",
    "   = all of it is dropped, to be sent again"
}

warned! {
    intervals_that_shrink,
    "synproxyconf = {\n  timeouts = { syn_retx = 3; syn_retx_max = 2; };\n};\n",
    "conf.txt:2:30: warning: `syn_retx_max` is 2 s, and the first interval is 3 s",
    " 2 |   timeouts = { syn_retx = 3; syn_retx_max = 2; };",
    "   |                              ^^^^^^^^^^^^",
    "   = every interval is the first one then"
}

#[test]
fn complaints_of_one_text_are_bounded() {
    let text = format!("synproxyconf = {{ {} }};", "quux = 1; port = 1; ".repeat(10_000));
    let errors = parse(&text, "conf.txt").expect_err("refused");
    assert_eq!(errors.complaints.iter().filter(|complaint| complaint.level == Level::Error).count(), 50);
    assert_eq!(errors.complaints.len(), 100);
    assert_eq!(errors.omitted, 9_950);
    assert!(errors.to_string().ends_with("\nand 9950 more errors"));
}

#[test]
fn an_error_behind_many_warnings_is_still_an_error() {
    let text = format!("synproxyconf = {{ {} own_mss = 0; }};", "port = 1; ".repeat(1000));
    let errors = parse(&text, "conf.txt").expect_err("refused");
    assert_eq!(errors.complaints.last().map(|complaint| complaint.level), Some(Level::Error));
}

#[test]
fn a_text_of_more_than_a_mebibyte_is_refused_unread() {
    let text = format!("synproxyconf = {{}};{}", " ".repeat(confparse::MAX_TEXT));
    let errors = parse(&text, "conf.txt").expect_err("refused");
    assert!(errors.to_string().starts_with("conf.txt:1:1: the file has 1048594 bytes, and 1048576 is the most"));
}
