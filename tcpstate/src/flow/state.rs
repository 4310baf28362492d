//! The states a connection can be in, and which state may follow which. A record keeps a state as a byte, from which it is parsed.

/// What state a connection is in. The names are those of RFC 9293 and of the kernel's connection tracking where they have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum State {
    /// The record is not in use.
    #[default]
    Free = 0,
    /// An entry of the SYN cache: the box has answered a client's SYN.
    SynCached = 1,
    /// The client has proved itself; the box has sent its SYN to the server.
    ServerSynSent = 2,
    /// The server has answered. The box withholds the handshake's last ACK until the client's round-trip time has passed; that of an early client
    /// for a moment, in which the server's second SYN-ACK shows what it has to echo.
    AckWithheld = 3,
    /// The server has answered and has its ACK. The client has not yet shown that it knows the server's window.
    WindowPending = 4,
    /// Passed through: a SYN has passed.
    SynSent = 5,
    /// Passed through: the SYN-ACK has passed too.
    SynReceived = 6,
    /// One direction of a connection that may have been running before the box started has been seen.
    Unconfirmed = 7,
    /// Both ends may send.
    Established = 8,
    /// One end has sent FIN.
    FinWait = 9,
    /// Both ends have sent FIN; not both FINs are acknowledged.
    LastAck = 10,
    /// Both FINs are acknowledged.
    TimeWait = 11,
    /// An RST that its receiver may accept was passed. What still comes is passed for a while; if it shows that the receiver did not accept
    /// the RST, the connection goes on.
    Reset = 12,
    /// A client has proved itself by resetting what our SYN-ACK opened, as a check that never acknowledges does. The box has sent its SYN to the server
    /// to learn what that client would have met without it.
    ServerTried = 13,
    /// Both ends may send, and the kernel forwards their segments by itself.
    HandedDown = 14,
    /// The client of a service has proved itself. The box keeps what it sends until that says which server it is for.
    Gathering = 15,
    /// The server of a service has answered. The box repeats to it what it has acknowledged to the client, until the server has acknowledged that.
    Repeating = 16,
}

impl State {
    /// Every state a connection can be in.
    pub const ALL: [State; 16] = [
        State::SynCached,
        State::ServerSynSent,
        State::AckWithheld,
        State::WindowPending,
        State::SynSent,
        State::SynReceived,
        State::Unconfirmed,
        State::Established,
        State::FinWait,
        State::LastAck,
        State::TimeWait,
        State::Reset,
        State::ServerTried,
        State::HandedDown,
        State::Gathering,
        State::Repeating,
    ];

    /// The state a byte of a record stands for; `None` for a byte that stands for none.
    #[inline(always)]
    pub const fn parse(byte: u8) -> Option<State> {
        // The compiler makes one comparison of it.
        Some(match byte {
            0 => State::Free,
            1 => State::SynCached,
            2 => State::ServerSynSent,
            3 => State::AckWithheld,
            4 => State::WindowPending,
            5 => State::SynSent,
            6 => State::SynReceived,
            7 => State::Unconfirmed,
            8 => State::Established,
            9 => State::FinWait,
            10 => State::LastAck,
            11 => State::TimeWait,
            12 => State::Reset,
            13 => State::ServerTried,
            14 => State::HandedDown,
            15 => State::Gathering,
            16 => State::Repeating,
            _ => return None,
        })
    }

    /// The name operators use.
    pub const fn label(self) -> &'static str {
        match self {
            State::Free => "free",
            State::SynCached => "syn-cached",
            State::ServerSynSent => "server-syn-sent",
            State::AckWithheld => "ack-withheld",
            State::WindowPending => "window-pending",
            State::SynSent => "syn-sent",
            State::SynReceived => "syn-received",
            State::Unconfirmed => "unconfirmed",
            State::Established => "established",
            State::FinWait => "fin-wait",
            State::LastAck => "last-ack",
            State::TimeWait => "time-wait",
            State::Reset => "reset",
            State::ServerTried => "server-tried",
            State::HandedDown => "handed-down",
            State::Gathering => "gathering",
            State::Repeating => "repeating",
        }
    }

    /// The states a name stands for: a label, or one of the names operators used before, some of which covered several states (`established` still
    /// does). Empty for any
    /// other word.
    pub fn named(name: &str) -> &'static [State] {
        match name {
            "half-open" => &[State::SynCached],
            "dialling" => &[State::ServerSynSent],
            "opening-sent" => &[State::SynSent],
            "opening-answered" => &[State::SynReceived],
            // Operators' name for these, which the box now tells apart by what it still owes to one of the ends.
            "established" => {
                &[State::AckWithheld, State::WindowPending, State::Unconfirmed, State::Established, State::HandedDown]
            }
            "closing" => &[State::FinWait, State::LastAck],
            _ => Self::ALL.iter().position(|state| state.label() == name).map_or(&[], |at| &Self::ALL[at..=at]),
        }
    }

    /// Whether a connection in this state may come to be in `next`. What is not listed here must not happen: the one function that changes
    /// states asserts it, and `docs/states.md` shows it.
    pub const fn may_become(self, next: State) -> bool {
        use State::*;
        matches!(
            (self, next),
            // A record is filled.
            (
                Free,
                SynCached
                    | ServerSynSent
                    | ServerTried
                    | Gathering
                    | SynSent
                    | SynReceived
                    | Unconfirmed
                    | Established
            )
                // The server has answered.
                | (ServerSynSent, AckWithheld | WindowPending)
                | (AckWithheld, WindowPending)
                // What the client asks for is known.
                | (Gathering, ServerSynSent)
                // Its server has answered, and has then what the client has sent meanwhile.
                | (ServerSynSent, Repeating)
                | (Repeating, Established | FinWait | LastAck | TimeWait | Reset)
                // A segment of the client, or of the direction that was missing, has come.
                | (AckWithheld | WindowPending | SynReceived | Unconfirmed, Established)
                | (SynSent, SynReceived)
                // The client begins anew with another SYN.
                | (SynReceived, SynSent)
                // The ends finish.
                | (AckWithheld | WindowPending | Established, FinWait)
                | (FinWait, LastAck)
                // The client's first ACK brings its FIN, behind early data and FIN of the server.
                | (Established, LastAck)
                // It brings all that was missing of a connection whose ends finished before the box had seen its handshake.
                | (Established, TimeWait)
                | (LastAck, TimeWait)
                | (AckWithheld | WindowPending | SynSent | SynReceived | Established | FinWait | LastAck | TimeWait, Reset)
                // The kernel forwards its segments, until one comes that it does not forward.
                | (Established, HandedDown)
                | (HandedDown, Established | FinWait | LastAck | Reset)
                // The RST was forged: its receiver acknowledges more than the RST's number.
                | (Reset, Repeating | Established | FinWait | LastAck | TimeWait)
                // Every record is freed in the end.
                | (_, Free)
        )
    }

    /// Whether both ends have met: what comes is followed by its numbers and passed.
    pub const fn is_connected(self) -> bool {
        matches!(
            self,
            State::AckWithheld
                | State::WindowPending
                | State::Repeating
                | State::Established
                | State::HandedDown
                | State::FinWait
                | State::LastAck
                | State::TimeWait
                | State::Reset
        )
    }

    /// Whether nothing more is to be expected of the connection, so that a new one may take its key.
    pub const fn is_over(self) -> bool {
        matches!(self, State::LastAck | State::TimeWait | State::Reset)
    }
}

const _: () = {
    let mut at = 0;
    while at < State::ALL.len() {
        assert!(State::ALL[at] as usize == at + 1, "a state's byte is its place in the list plus one");
        at += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_parsed_from_its_own_byte_and_from_no_other() {
        for byte in 0..=u8::MAX {
            match State::parse(byte) {
                Some(state) => assert_eq!(state as u8, byte),
                None => assert!(usize::from(byte) > State::ALL.len()),
            }
        }
    }

    #[test]
    fn every_label_names_its_state_and_former_names_still_work() {
        for state in State::ALL {
            assert!(State::named(state.label()).contains(&state));
            assert!(state == State::Established || State::named(state.label()).len() == 1);
        }
        assert_eq!(State::named("closing"), [State::FinWait, State::LastAck]);
        assert_eq!(State::named("half-open"), [State::SynCached]);
        assert!(State::named("shut").is_empty());
    }

    #[test]
    fn every_state_can_be_reached_and_left() {
        for state in State::ALL {
            assert!([State::Free].iter().chain(&State::ALL).any(|from| *from != state && from.may_become(state)));
            assert!(state.may_become(State::Free));
        }
    }
}
