//! `when`: a condition in the Common Expression Language, compiled when the configuration is read and held to a bound of
//! cost whenever it is judged. The language has no loops but over lists and maps, whose sizes a sender chooses: what is done
//! for each element is paid for from a budget.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};

use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, SourceInfo, operators};
use cel::extractors::This;
use cel::parser::Parser;
use cel::{Context, Env, ExecutionError, Value};
use regex::{Regex, RegexBuilder};

use super::facts::{Facts, SIZE, VARIABLES};
use crate::json::JsonError;

/// Longer ones are programs, and belong into the backend.
const TEXT_BYTES_MAX: usize = 2048;
/// Expressions within expressions; judging goes down as far, on the stack of a thread of the runtime.
const DEPTH_MAX: usize = 40;
/// Steps of evaluation within loops, of about 100 ns each.
const STEPS_MAX: i64 = 4_000_000;
/// Of a compiled pattern; each byte of a text may take as many steps as it has states.
const PATTERN_BYTES_MAX: usize = 64 << 10;
/// Pays for one round of a loop: the steps of its body, and whether it may go through the whole delivery.
const SPEND: &str = "@spend";

/// What may be called, beside operators.
const FUNCTIONS: [&str; 13] = [
    "bool",
    "bytes",
    "contains",
    "double",
    "dyn",
    "endsWith",
    "int",
    "matches",
    "size",
    "startsWith",
    "string",
    "type",
    "uint",
];

/// A condition that can be judged.
#[derive(Clone)]
pub struct Condition {
    text: Arc<str>,
    expression: Arc<IdedExpr>,
    /// Those of `matches`, by their text: a pattern is never a sender's.
    patterns: Arc<HashMap<String, Regex>>,
}

/// Why a text is no condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConditionError {
    /// Where in the text, in bytes.
    pub at: usize,
    /// What is wrong there.
    pub message: String,
}

/// Why a condition cannot be judged of a delivery. Never says what is in the delivery: it is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unjudged {
    /// It asks for the body, which is not JSON.
    #[error("the body is not JSON")]
    NotJson,
    /// It asks for the body, which is too large to be looked into.
    #[error("the body has more than 100,000 values")]
    TooManyValues,
    /// It asks for a member that is not there, without `has(…)`.
    #[error("a member that it names is not there; `has(…)` asks whether one is")]
    Missing,
    /// An operator or function got what it cannot use.
    #[error("an operator or a function got a value that it cannot use")]
    Failed,
    /// What came of it is neither true nor false.
    #[error("what comes of it is neither true nor false")]
    NotBoolean,
    /// It goes through more elements than it may.
    #[error("it goes through too many elements")]
    Costly,
}

impl Condition {
    /// Compiles `text`.
    ///
    /// # Errors
    /// With all that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Vec<ConditionError>> {
        let error = |at, message: String| ConditionError { at, message };
        if text.len() > TEXT_BYTES_MAX {
            let message =
                format!("the condition has {} bytes; at most {TEXT_BYTES_MAX} are allowed", text.len());
            return Err(vec![error(0, message)]);
        }
        let parsed = Parser::new().max_recursion_depth(DEPTH_MAX as u16).parse_with_source_info(text);
        let (mut expression, places) = parsed.map_err(|errors| {
            // One mistake makes the parser stumble several times; what follows the first tells nothing.
            let first = errors.errors.into_iter().take(1);
            first.map(|found| error(offset(text, found.pos), found.msg)).collect::<Vec<_>>()
        })?;
        let mut check =
            Check { text, places: &places, scope: Vec::new(), patterns: HashMap::new(), errors: Vec::new() };
        check.expression(&expression, 0);
        if let Some(other) = never_boolean(&expression) {
            check.wrong(other, "a condition is true or false, and this is neither");
        }
        let Check { patterns, errors, .. } = check;
        if !errors.is_empty() {
            return Err(errors);
        }
        meter(&mut expression);
        Ok(Self { text: text.into(), expression: Arc::new(expression), patterns: Arc::new(patterns) })
    }

    /// Whether it holds of a delivery.
    pub(super) fn holds(&self, facts: &Facts<'_>) -> Result<bool, Unjudged> {
        static LIBRARY: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));
        let mut context = Context::with_env(Arc::clone(&LIBRARY));
        context.set_variable_resolver(facts);
        let left = Arc::new(AtomicI64::new(STEPS_MAX));
        let (budget, patterns) = (Arc::clone(&left), Arc::clone(&self.patterns));
        let spend = move |steps: i64, size: i64| {
            let cost = steps.saturating_add(size);
            match budget.fetch_sub(cost, Ordering::Relaxed) > cost {
                true => Ok(true),
                false => Err(ExecutionError::function_error(SPEND, "")),
            }
        };
        let matches = move |This(text): This<Arc<String>>, pattern: Arc<String>| {
            patterns.get(&*pattern).is_some_and(|pattern| pattern.is_match(&text))
        };
        let added =
            context.add_function(SPEND, spend).and_then(|()| context.add_function("matches", matches));
        if added.is_err() {
            return Err(Unjudged::Failed);
        }
        match Value::resolve(&self.expression, &context) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(_) => Err(Unjudged::NotBoolean),
            Err(_) if left.load(Ordering::Relaxed) <= 0 => Err(Unjudged::Costly),
            Err(error) => Err(match (facts.body_error(), error) {
                (Some(JsonError::NotJson), _) => Unjudged::NotJson,
                (Some(JsonError::TooManyValues), _) => Unjudged::TooManyValues,
                (None, ExecutionError::NoSuchKey(_)) => Unjudged::Missing,
                (None, _) => Unjudged::Failed,
            }),
        }
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Condition").field(&self.text).finish()
    }
}

/// What is certain to be neither true nor false, where that would make the whole so. What is in a body is not known.
fn never_boolean(expression: &IdedExpr) -> Option<&IdedExpr> {
    let is_other = match &expression.expr {
        Expr::Literal(literal) => !matches!(literal, LiteralValue::Boolean(_)),
        Expr::List(_) => true,
        Expr::Ident(name) => name != "body" && VARIABLES.contains(&name.as_str()),
        Expr::Call(call) => match (call.func_name.as_str(), &call.args[..]) {
            (operators::CONDITIONAL, [_, one, other])
            | (operators::LOGICAL_AND | operators::LOGICAL_OR, [one, other]) => {
                return never_boolean(one).or_else(|| never_boolean(other));
            }
            (operators::LOGICAL_NOT, [negated]) => return never_boolean(negated),
            (
                operators::ADD
                | operators::SUBSTRACT
                | operators::MULTIPLY
                | operators::DIVIDE
                | operators::MODULO
                | operators::NEGATE
                | "bytes"
                | "double"
                | "int"
                | "size"
                | "string"
                | "type"
                | "uint",
                _,
            ) => true,
            _ => false,
        },
        _ => false,
    };
    is_other.then_some(expression)
}

/// What is checked before anything is judged: names, nesting and patterns.
struct Check<'t> {
    text: &'t str,
    places: &'t SourceInfo,
    /// Variables of the loops around, innermost last.
    scope: Vec<String>,
    patterns: HashMap<String, Regex>,
    errors: Vec<ConditionError>,
}

impl Check<'_> {
    fn wrong(&mut self, at: &IdedExpr, message: impl Into<String>) {
        let place = self.places.offset_for(at.id).map_or(0, |(start, _)| start as usize);
        let at = self.text.floor_char_boundary(place);
        self.errors.push(ConditionError { at, message: message.into() });
    }

    fn expression(&mut self, of: &IdedExpr, depth: usize) {
        if depth > DEPTH_MAX {
            return self.wrong(of, format!("the condition is nested more than {DEPTH_MAX} levels deep"));
        }
        let depth = depth + 1;
        match &of.expr {
            Expr::Ident(name) => {
                if !VARIABLES.contains(&name.as_str()) && !self.scope.contains(name) {
                    self.wrong(
                        of,
                        format!("there is no variable `{name}`; there are {}", VARIABLES.join(", ")),
                    );
                }
            }
            Expr::Select(select) => self.expression(&select.operand, depth),
            Expr::Call(call) => {
                let is_operator = call.func_name.contains(['_', '@']);
                if !is_operator && !FUNCTIONS.contains(&call.func_name.as_str()) {
                    let known = FUNCTIONS.join(", ");
                    self.wrong(of, format!("there is no function `{}`; there are {known}", call.func_name));
                } else if call.func_name == "matches" {
                    self.pattern(call.args.last().unwrap_or(of));
                }
                call.target.iter().for_each(|target| self.expression(target, depth));
                call.args.iter().for_each(|argument| self.expression(argument, depth));
            }
            Expr::List(list) => list.elements.iter().for_each(|element| self.expression(element, depth)),
            Expr::Comprehension(each) => {
                self.expression(&each.iter_range, depth);
                self.expression(&each.accu_init, depth);
                let outside = self.scope.len();
                self.scope.extend([each.iter_var.clone(), each.accu_var.clone()]);
                self.scope.extend(each.iter_var2.clone());
                for inside in [&each.loop_cond, &each.loop_step, &each.result] {
                    self.expression(inside, depth);
                }
                self.scope.truncate(outside);
            }
            Expr::Map(_) | Expr::Struct(_) => {
                self.wrong(of, "a condition asks about a delivery, and makes no maps or messages");
            }
            Expr::Literal(_) | Expr::Unspecified => {}
        }
    }

    /// Compiles the pattern of `matches`.
    fn pattern(&mut self, of: &IdedExpr) {
        let Expr::Literal(LiteralValue::String(pattern)) = &of.expr else {
            return self.wrong(of, "the pattern of `matches` must stand in the condition");
        };
        match RegexBuilder::new(pattern.inner()).size_limit(PATTERN_BYTES_MAX).build() {
            Ok(compiled) => drop(self.patterns.insert(pattern.inner().to_owned(), compiled)),
            Err(regex::Error::CompiledTooBig(_)) => self.wrong(of, "the pattern is too large"),
            Err(error) => {
                let text = error.to_string();
                let why = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
                self.wrong(of, format!("the pattern cannot be used: {why}"));
            }
        }
    }
}

/// Has each round of each loop pay. What `cel` makes of a macro is left as it is but for the text that the operator wrote
/// for each element: it recognises the rest, and does it without copies.
fn meter(expression: &mut IdedExpr) {
    match &mut expression.expr {
        Expr::Select(select) => meter(&mut select.operand),
        Expr::Call(call) => {
            call.target.iter_mut().map(|target| &mut **target).chain(&mut call.args).for_each(meter);
        }
        Expr::List(list) => list.elements.iter_mut().for_each(meter),
        Expr::Comprehension(each) => {
            meter(&mut each.iter_range);
            meter(&mut each.loop_step);
            let mut own = vec![each.iter_var.clone(), each.accu_var.clone()];
            let (mut steps, mut looks_out) = (0, false);
            count(&each.loop_step, &mut own, &mut steps, &mut looks_out);
            let Expr::Call(step) = &mut each.loop_step.expr else { return };
            // `all` and `exists` are `accu && E` and `accu || E`, `map` is `accu + [E]`, the others are `E ? … : accu`.
            let own_text = match (step.func_name.as_str(), step.args.as_mut_slice()) {
                (operators::CONDITIONAL, [test, ..]) => test,
                (operators::LOGICAL_AND | operators::LOGICAL_OR, [_, each]) => each,
                (operators::ADD, [_, added]) => match &mut added.expr {
                    Expr::List(list) if !list.elements.is_empty() => &mut list.elements[0],
                    _ => added,
                },
                _ => &mut each.loop_step,
            };
            pay(own_text, steps, looks_out);
        }
        Expr::Map(_) | Expr::Struct(_) | Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
    }
}

/// `E` becomes `@spend(steps, size) ? E : false`, whose error is the end of it. A round that looks out, at something from
/// outside of its loop, may go through all of that, or copy it.
fn pay(text: &mut IdedExpr, steps: i64, looks_out: bool) {
    let plain = |expr| IdedExpr { id: 0, expr };
    let literal = |literal| plain(Expr::Literal(literal));
    let call =
        |name: &str, args| plain(Expr::Call(CallExpr { func_name: name.to_owned(), target: None, args }));
    let size =
        if looks_out { plain(Expr::Ident(SIZE.to_owned())) } else { literal(LiteralValue::Int(0.into())) };
    let spend = call(SPEND, vec![literal(LiteralValue::Int(steps.into())), size]);
    let otherwise = literal(LiteralValue::Boolean(false.into()));
    *text = call(operators::CONDITIONAL, vec![spend, std::mem::take(text), otherwise]);
}

fn count(of: &IdedExpr, own: &mut Vec<String>, steps: &mut i64, looks_out: &mut bool) {
    *steps += 1;
    let mut each = |of: &IdedExpr, own: &mut Vec<String>| count(of, own, steps, looks_out);
    match &of.expr {
        Expr::Ident(name) => *looks_out |= !own.contains(name),
        Expr::Select(select) => each(&select.operand, own),
        Expr::Call(call) => {
            call.target.iter().for_each(|target| each(target, own));
            call.args.iter().for_each(|argument| each(argument, own));
        }
        Expr::List(list) => list.elements.iter().for_each(|element| each(element, own)),
        Expr::Comprehension(inner) => {
            each(&inner.iter_range, own);
            let outside = own.len();
            own.extend([inner.iter_var.clone(), inner.accu_var.clone()]);
            each(&inner.loop_step, own);
            own.truncate(outside);
        }
        Expr::Map(_) | Expr::Struct(_) | Expr::Literal(_) | Expr::Unspecified => {}
    }
}

/// The byte at a line and column, as the parser counts them.
fn offset(text: &str, (line, column): (isize, isize)) -> usize {
    let line = usize::try_from(line - 1).unwrap_or(0);
    let start: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    let column = usize::try_from(column - 1).unwrap_or(0);
    let rest = &text[start.min(text.len())..];
    start + rest.char_indices().nth(column).map_or(rest.len(), |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::facts::tests::delivery;

    fn judge(condition: &str, body: &[u8]) -> Result<bool, Unjudged> {
        let condition =
            Condition::parse(condition).unwrap_or_else(|errors| panic!("{condition}: {errors:?}"));
        let mut delivery = delivery(body, Some("deployment.failed"));
        delivery.headers.insert("x-tenant", "blue".parse().unwrap());
        delivery.headers.append("x-list", "1".parse().unwrap());
        delivery.headers.append("x-list", "2".parse().unwrap());
        condition.holds(&Facts::new(&delivery))
    }

    const BODY: &[u8] =
        br#"{"status":"failed","n":3,"big":18446744073709551615,"f":2.5,"ok":true,"none":null,"tags":["a","b"],
            "site":{"id":"s-1","labels":[{"k":"env","v":"prod"},{"k":"tier","v":"1"}]},"a.b":1,"uml":"\u00e4"}"#;

    #[test]
    fn conditions_ask_about_body_headers_event_and_source() {
        for holds in [
            "true",
            "body.status == 'failed' && body.n > 2 && body.n < 3.5",
            "body.site.labels.exists(l, l.k == 'env' && l.v == 'prod')",
            "body.site.labels.all(l, size(l.v) > 0)",
            "body.site.labels.exists_one(l, l.k == 'tier')",
            "body.tags.filter(t, t != 'a') == ['b']",
            "body.tags.map(t, t + '!').exists(t, t == 'b!')",
            "body.tags.exists(t, t in ['b', 'c']) && 'a' in body.tags && 'site' in body",
            "has(body.site.id) && !has(body.site.name) && !has(body.nothing)",
            "body.site.id.startsWith('s-') && body.status.endsWith('led') && body.status.contains('ail')",
            "body['a.b'] == 1 && body.tags[1] == 'b' && body.none == null && body.f == 2.5",
            "body.big > 9007199254740992u && body.ok",
            "event == 'deployment.failed' && event.startsWith('deployment.')",
            "source == 'shop' && method == 'POST' && delivery_id == 'evt_1'",
            "headers['x-tenant'] == 'blue' && headers['x-list'] == '1, 2' && !('x-other' in headers)",
            "body.status.matches('^fail(ed|ure)$') && matches(event, r'^deployment\\.')",
            "body.uml == 'ä' && size(body.uml) == 1",
            "body.status == 'failed' ? body.n == 3 : false",
            "int(string(body.n)) == 3 && type(body.n) == type(1)",
        ] {
            assert_eq!(judge(holds, BODY), Ok(true), "{holds}");
            assert_eq!(judge(&format!("!({holds})"), BODY), Ok(false), "!({holds})");
        }
    }

    #[test]
    fn what_cannot_be_judged_is_said_without_saying_what_is_in_the_delivery() {
        let check = |condition, body: &[u8], expected| {
            assert_eq!(judge(condition, body), Err(expected), "{condition}");
        };
        check("body.nothing == 1", BODY, Unjudged::Missing);
        check("body.site.nothing.more == 1", BODY, Unjudged::Missing);
        check("headers['x-other'] == ''", BODY, Unjudged::Missing);
        check("body.status > 1", BODY, Unjudged::Failed);
        check("body.status.k == 1", BODY, Unjudged::Failed);
        check("body.tags[7] == 'x'", BODY, Unjudged::Failed);
        check("body.n / 0 == 1", BODY, Unjudged::Failed);
        check("body.status", BODY, Unjudged::NotBoolean);
        check("body.ok", b"not json", Unjudged::NotJson);
        check("body.ok", b"", Unjudged::NotJson);
        check("body.ok", format!("[{}1]", "1,".repeat(100_000)).as_bytes(), Unjudged::TooManyValues);
    }

    /// `&&` and `||` decide by the side that is known, as the language has it.
    #[test]
    fn what_is_known_decides_where_it_is_enough() {
        assert_eq!(judge("event == 'push' && body.ok", b"not json"), Ok(false));
        assert_eq!(judge("body.ok && event == 'push'", b"not json"), Ok(false));
        assert_eq!(judge("body.ok || event.startsWith('deployment.')", b"not json"), Ok(true));
        assert_eq!(judge("has(body.x) && body.x == 1", b"{}"), Ok(false));
    }

    #[test]
    fn errors_of_a_condition_have_a_place() {
        let check = |condition: &str, at, message: &str| {
            let errors = Condition::parse(condition).unwrap_err();
            assert!(errors[0].message.contains(message), "{condition}: {errors:?}");
            assert_eq!(errors[0].at, at, "{condition}: {errors:?}");
        };
        check("body.a ==", 9, "Syntax error");
        check("body.a == ) 1", 10, "Syntax error");
        check("", 0, "Syntax error");
        check("'ä' == 'ä' &&\n bodi.a == 1", 17, "there is no variable `bodi`");
        check("body.a == 1 && bodi.a == 1", 15, "there is no variable `bodi`");
        check("event.lower() == 'x'", 11, "there is no function `lower`");
        check("event.matches('(')", 14, "the pattern cannot be used: unclosed group");
        check("event.matches(body.pattern)", 18, "must stand in the condition");
        check("event.matches('(a{100}){100}')", 14, "too large");
        check("'text'", 0, "true or false");
        check("1 + 2", 2, "true or false");
        check("event", 0, "true or false");
        check("event == 'a' && size(body.l)", 20, "true or false");
        check("body.a ? [1] : true", 9, "true or false");
        check("!(1)", 2, "true or false");
        check("{'a': 1}.a == 1", 0, "makes no maps");
        check("x.all(y, true)", 0, "there is no variable `x`");
        check(&"x".repeat(TEXT_BYTES_MAX + 1), 0, "at most 2048 are allowed");
        assert_eq!(Condition::parse("bodi.a == 1 || hedders.b == 2").unwrap_err().len(), 2);
    }

    /// On the stack that threads of the runtime have, in whatever way the tests are built.
    #[test]
    fn nesting_is_refused_before_it_exhausts_a_stack() {
        for (open, close) in [
            ("(", ")"),
            ("[", "]"),
            ("!", ""),
            ("-", ""),
            ("size(", ")"),
            ("true ? ", " : true"),
            ("1 + ", ""),
        ] {
            let deep = |levels: usize| format!("{}1{}", open.repeat(levels), close.repeat(levels));
            assert!(Condition::parse(&deep(500)).is_err() || open == "!" || open == "-", "{open}");
            assert!(
                Condition::parse(&deep(TEXT_BYTES_MAX / (open.len() + close.len()) - 1)).is_err()
                    || open == "!"
                    || open == "-",
                "{open}"
            );
        }
        let sum = format!("0{} == 0", " + body.n".repeat(36));
        assert_eq!(judge(&sum, BODY), Ok(false));
        let sum = format!("0{} == 0", " + body.n".repeat(DEPTH_MAX));
        assert!(Condition::parse(&sum).unwrap_err()[0].message.contains("levels deep"));
        let loops = "body.tags.all(a, ".repeat(12) + "true" + &")".repeat(12);
        assert!(judge(&loops, BODY) == Ok(true));
    }

    #[test]
    fn loops_have_a_budget_whatever_the_sender_puts_into_them() {
        let many = format!("{{\"l\":[{}1],\"s\":\"{}\"}}", "1,".repeat(40_000), "x".repeat(300_000));
        assert_eq!(judge("body.l.exists(x, x == 2)", many.as_bytes()), Ok(false), "one loop over them all");
        assert_eq!(judge("size(body.l.filter(x, x == 1)) == 40001", many.as_bytes()), Ok(true));
        for costly in [
            "body.l.exists(x, body.l.exists(y, x + y == 3))",
            "body.l.all(x, body.l.all(y, x == y))",
            "body.l.map(x, body.l.map(y, y)) == []",
            "body.l.filter(x, body.s.contains('y')) == []",
            "body.l.exists_one(x, body.s.contains('y'))",
            "body.l.map(x, x == 1, body.l) == []",
            "[body.l].exists(l, l.exists(x, l.exists(y, x + y == 3)))",
        ] {
            assert_eq!(judge(costly, many.as_bytes()), Err(Unjudged::Costly), "{costly}");
        }
    }
}
