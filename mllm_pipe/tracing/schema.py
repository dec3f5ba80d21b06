"""The tables of the journal's index, and the views over them that --sql documents. Text of messages is not copied:
the view reads it where it stands in the journal. Ids of calls are in the order of time (UUIDv7); calls and kinds have
for a number the offset of the line where they stand, or first stood. Tokens and costs are integers, and REAL where they
are large: a column without a type keeps that.

A chunk has some hundred calls in columns, of which each is a JSON array, or null if all are; its `n` is the first
offset. `held` says in which chunks a run has calls. `pace` has how many calls took how long, by three digits; a kind
may have several lines of it. The rows of `call` are made of the chunks when they are first asked for.
"""

VERSION = 7

TABLES = """
create table meta (version integer, device integer, inode integer, head text, offset integer, tail text, paced integer,
  unsound integer, rowed integer);
create table kind (n integer primary key, op text, slot text, agent text, runtime text, model text, "group" text,
  status text, stage text, cost_source text);
create table call (offset integer primary key, length integer, id text, run text, thread text, kind integer,
  started_at text, duration_ms real, first_token_ms real, input_tokens, cache_read_tokens,
  cache_write_tokens, output_tokens, reasoning_tokens, cost, input_id text,
  handed_id text, outputs text, attempts text, losses integer);
create table chunk (n integer primary key, calls integer, oldest text, newest text, offset, length, run, thread, kind,
  started_at, duration_ms, first_token_ms, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens,
  reasoning_tokens, cost, id, input_id, handed_id, outputs, attempts, losses);
create table held (run text, chunk integer);
create table verdict (id text, run text, run_id text, thread text, about text, rubric text, pass integer, score real,
  preferred text, consistent integer, self_judged integer, runtime text, model text,
  part text);
create table unrouted (run text, run_id text, thread text);
create table pending (id blob, offset integer, length integer);
create table total (kind integer primary key, calls integer, unpriced integer, cost, input_tokens, cache_read_tokens,
  cache_write_tokens, output_tokens, reasoning_tokens);
create table pace (kind integer, first integer, times);
"""

# After the first filling: an index that grows row by row takes longer.
INDEXES = """
create index held_run on held (run);
"""
INDEX_OF_ROWS = "create index if not exists call_run on call (run)"

VIEWS = """
create view spans as select call.id, run as parent_run_id, thread, op, slot, agent, runtime, model, "group", stage,
  status, started_at, duration_ms, first_token_ms, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens,
  reasoning_tokens, cost / 1e12 as cost_usd, cost_source, input_id, handed_id, losses
  from call join kind on kind.n = call.kind;
create view noes as select run, run_id, thread from verdict where pass is not 1 and part is null
  union all select run, run_id, thread from unrouted;
create view denied as select said.run from
  (select run, thread, max(run_id) as id from noes group by run, thread) as said
  left join (select run, thread, max(call.id) as id from call join kind on kind.n = call.kind
    where op = 'dispatch' and status = 'ok' and run in (select run from noes)
    group by run, thread) as answer on answer.run = said.run and answer.thread = said.thread
  where answer.id is null or answer.id < said.id;
create view runs as select run as id,
  (select substr(kind."group", 1, instr(kind."group" || '/', '/') - 1) from call as one join kind on kind.n = one.kind
    where one.run = call.run and kind."group" is not null order by one.started_at, one.offset limit 1) as "group",
  case max(case status when 'error' then 3 when 'unknown' then 2 else
    run in (select run from denied) end)
    when 3 then 'error' when 2 then 'unknown' when 1 then 'no' else 'ok' end as status,
  min(started_at) as started_at,
  round(max((julianday(started_at) - 2461000) * 86400000 + duration_ms)
    - min((julianday(started_at) - 2461000) * 86400000), 1) as duration_ms,
  count(*) as calls, sum(status <> 'ok') as failed, sum(input_tokens) as input_tokens,
  sum(output_tokens) as output_tokens, sum(cost) / 1e12 as cost_usd, sum(cost is null) as unpriced
  from call join kind on kind.n = call.kind group by run;
create view attempts as
  select call.id as run_id, run as parent_run_id, thread, 1 as number, runtime, model, status, null as code,
  0.0 as wait_ms, duration_ms from call join kind on kind.n = call.kind where attempts is null
  union all
  select call.id, run, thread, each.key + 1, each.value ->> 'runtime', each.value ->> 'model', each.value ->> 'status',
  each.value ->> 'code', coalesce(each.value ->> 'wait_ms', 0.0), each.value ->> 'duration_ms'
  from call, json_each(attempts) as each where attempts is not null;
create view messages as select each.value as id, thread, run as parent_run_id, call.id as run_id, agent, runtime, model,
  in_journal(offset, length, each.value, 'at') as at, in_journal(offset, length, each.value, 'finish') as finish,
  in_journal(offset, length, each.value, 'bytes') as bytes, in_journal(offset, length, each.value, 'sha256') as sha256,
  in_journal(offset, length, each.value, 'content') as content
  from call join kind on kind.n = call.kind, json_each(outputs) as each where op in ('dispatch', 'tool');
create view verdicts as select id, run as parent_run_id, run_id, thread, about, rubric, pass, score, preferred,
  consistent, self_judged, runtime, model, part from verdict;
create view handed as select call.*, coalesce(both.value, handed_id, input_id) as message_id from call
  left join (select distinct run_id, each.value from verdict, json_each(about) as each
    where json_array_length(about) > 1) as both on both.run_id = call.id
  where input_id is not null;
create view handoffs as select given.run as parent_run_id, given.thread, kind.agent as to_agent,
  kind.runtime as to_runtime, kind.model as to_model, given.id as to_run_id, made.agent as from_agent,
  made.runtime as from_runtime, made.model as from_model, made.run_id as from_run_id,
  given.message_id,
  in_journal(made.offset, made.length, made.id, 'bytes') as bytes,
  in_journal(made.offset, made.length, made.id, 'sha256') as sha256,
  max(0.0, round((julianday(given.started_at) - julianday(made.started_at)) * 86400000 - made.duration_ms, 1))
    as wait_ms
  from handed as given join kind on kind.n = given.kind
  left join (select each.value as id, call.id as run_id, thread, started_at, duration_ms, offset, length, agent,
    runtime, model from call join kind on kind.n = call.kind, json_each(outputs) as each) as made
  on made.id = given.message_id and made.thread = given.thread;
"""
