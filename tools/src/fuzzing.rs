//! The body of the fuzz target for what a box may answer. It takes the fuzzer's input and panics when a promise is broken.

use crate::programs::synctl;
use crate::top::Screen;
use crate::views::Columns;
use control::Reply;

/// Any line that a box may answer: what is understood is shown, as text, as JSON that is understood again, and on the screen of `synctl top`.
pub fn answers(data: &[u8]) {
    // On a screen two answers are compared.
    let (mut screen, mut tops) = (Screen::default(), 0);
    for line in data.split(|&byte| byte == b'\n').take(8) {
        let Ok(reply) = serde_json::from_slice::<Reply>(line) else { continue };
        let _ = synctl::text(&reply);
        let written = serde_json::to_vec(&reply).expect("an answer can be written");
        let again = serde_json::from_slice::<Reply>(&written).expect("it can be read");
        let _ = synctl::text(&again);
        match reply {
            Reply::Flows(page) => {
                let columns = Columns::of(&page.flows);
                let width = columns.head().lines().count();
                assert!(page.flows.iter().all(|flow| !columns.row(flow).is_empty()) && width == 1);
            }
            Reply::Top(top) => {
                tops += 1;
                screen.update(*top);
                for (width, height) in [(20, 3), (80, 24), (200, 60)] {
                    let text = screen.text(width, height);
                    assert!(text.lines().count() <= usize::from(height));
                }
            }
            _ => {}
        }
    }
    if tops > 0 {
        for key in ['s', 't', 'p', 's'] {
            screen.press(key);
            let _ = screen.text(80, 24);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_answer_is_shown_or_called_unexpected() {
        harness::replay("answers", super::answers);
    }
}
