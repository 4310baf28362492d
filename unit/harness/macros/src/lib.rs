//! The attribute that registers a test with `harness`. Without `syn`: the function is passed on as it stands, and only its name is read.

use proc_macro::{Ident, TokenStream, TokenTree};

/// Registers a function without arguments as a test of this program. `#[test(alone)]`: while it runs, no other test does.
/// `#[test(light)]`: while it runs, only others that are `light` do. `#[test(long)]`, `#[test(light, long)]`: it takes ten seconds or more, and begins before the
/// others, so that at the end nobody waits for it.
#[proc_macro_attribute]
pub fn test(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let (mut company, mut is_long) = ("Any", false);
    for word in arguments.to_string().split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word {
            "light" => company = "Light",
            "alone" => company = "Nobody",
            "long" => is_long = true,
            other => return complaint(&format!("`{other}` means nothing here; `light`, `alone` and `long` do")),
        }
    }
    let Some(name) = function(item.clone()) else { return complaint("a test is a function") };
    let registration = format!(
        "const _: () = {{ ::harness::inventory::submit! {{
             ::harness::Test {{ module: ::core::module_path!(), name: \"{name}\", company: ::harness::Company::{company}, is_long: {is_long}, body: {name} }}
         }} }};"
    );
    let registration: TokenStream = registration.parse().expect("these are tokens");
    item.into_iter().chain(registration).collect()
}

/// The name of the function: what follows the first `fn`, which attributes and visibility stand before.
fn function(item: TokenStream) -> Option<Ident> {
    let mut tokens = item.into_iter();
    tokens.find(|token| matches!(token, TokenTree::Ident(word) if word.to_string() == "fn"))?;
    match tokens.next()? {
        TokenTree::Ident(name) => Some(name),
        _ => None,
    }
}

fn complaint(message: &str) -> TokenStream {
    format!("::core::compile_error!({message:?});").parse().expect("these are tokens")
}
