use super::*;

#[test]
fn nothing_is_drawn_where_there_is_no_terminal() {
    for mode in [Mode::Auto, Mode::Bar, Mode::Lines, Mode::Json, Mode::None] {
        for (json, is_single) in [(false, false), (true, false), (false, true)] {
            assert_ne!(mode.resolve(false, json, is_single), Mode::Bar);
        }
    }
    assert_eq!(Mode::Auto.resolve(true, false, false), Mode::Bar);
    assert_eq!(Mode::Auto.resolve(true, true, false), Mode::Bar);
    assert_eq!(Mode::Auto.resolve(true, false, true), Mode::None);
    assert_eq!(Mode::Auto.resolve(false, false, false), Mode::Lines);
    assert_eq!(Mode::Auto.resolve(false, true, false), Mode::None);
    assert_eq!(Mode::Json.resolve(true, true, true), Mode::Json);
}
