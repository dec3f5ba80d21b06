CREATE TABLE "_llm_migrations" (
   "name" TEXT PRIMARY KEY,
   "applied_at" TEXT
);
INSERT INTO _llm_migrations VALUES ('m001_initial','2026-11-25 19:17:20.875015+00:00');
INSERT INTO _llm_migrations VALUES ('m002_id_primary_key','2026-11-25 19:17:20.935034+00:00');
INSERT INTO _llm_migrations VALUES ('m003_chat_id_foreign_key','2026-11-25 19:17:21.071176+00:00');
INSERT INTO _llm_migrations VALUES ('m004_column_order','2026-11-25 19:17:21.123039+00:00');
INSERT INTO _llm_migrations VALUES ('m004_drop_provider','2026-11-25 19:17:21.167024+00:00');
INSERT INTO _llm_migrations VALUES ('m005_debug','2026-11-25 19:17:21.226986+00:00');
INSERT INTO _llm_migrations VALUES ('m006_new_logs_table','2026-11-25 19:17:21.391302+00:00');
INSERT INTO _llm_migrations VALUES ('m007_finish_logs_table','2026-11-25 19:17:21.483291+00:00');
INSERT INTO _llm_migrations VALUES ('m008_reply_to_id_foreign_key','2026-11-25 19:17:21.563084+00:00');
INSERT INTO _llm_migrations VALUES ('m008_fix_column_order_in_logs','2026-11-25 19:17:21.627514+00:00');
INSERT INTO _llm_migrations VALUES ('m009_delete_logs_table_if_empty','2026-11-25 19:17:21.686998+00:00');
INSERT INTO _llm_migrations VALUES ('m010_create_new_log_tables','2026-11-25 19:17:21.771228+00:00');
INSERT INTO _llm_migrations VALUES ('m011_fts_for_responses','2026-11-25 19:17:21.926999+00:00');
INSERT INTO _llm_migrations VALUES ('m012_attachments_tables','2026-11-25 19:17:22.014946+00:00');
INSERT INTO _llm_migrations VALUES ('m013_usage','2026-11-25 19:17:22.127118+00:00');
INSERT INTO _llm_migrations VALUES ('m014_schemas','2026-11-25 19:17:22.439026+00:00');
INSERT INTO _llm_migrations VALUES ('m015_fragments_tables','2026-11-25 19:17:22.575181+00:00');
INSERT INTO _llm_migrations VALUES ('m016_fragments_table_pks','2026-11-25 19:17:22.652278+00:00');
INSERT INTO _llm_migrations VALUES ('m017_tools_tables','2026-11-25 19:17:22.807132+00:00');
INSERT INTO _llm_migrations VALUES ('m017_tools_plugin','2026-11-25 19:17:22.857776+00:00');
INSERT INTO _llm_migrations VALUES ('m018_tool_instances','2026-11-25 19:17:23.001019+00:00');
INSERT INTO _llm_migrations VALUES ('m019_resolved_model','2026-11-25 19:17:23.066990+00:00');
INSERT INTO _llm_migrations VALUES ('m020_tool_results_attachments','2026-11-25 19:17:23.122936+00:00');
INSERT INTO _llm_migrations VALUES ('m021_tool_results_exception','2026-11-25 19:17:23.163025+00:00');
INSERT INTO _llm_migrations VALUES ('m022_response_reasoning','2026-11-25 19:17:23.211207+00:00');
INSERT INTO _llm_migrations VALUES ('m023_message_store','2026-11-25 19:17:23.774963+00:00');
INSERT INTO _llm_migrations VALUES ('m024_tool_instance_references','2026-11-25 19:17:24.091012+00:00');
INSERT INTO _llm_migrations VALUES ('m025_turn_tools_instance_backfill','2026-11-25 19:17:24.111173+00:00');
INSERT INTO _llm_migrations VALUES ('m026_message_tree_view','2026-11-25 19:17:24.159062+00:00');
INSERT INTO _llm_migrations VALUES ('m027_turns_response_json','2026-11-25 19:17:24.223055+00:00');
CREATE TABLE "conversations" (
   "id" TEXT PRIMARY KEY,
   "name" TEXT,
   "model" TEXT
);
CREATE TABLE "responses" (
   "id" TEXT PRIMARY KEY,
   "model" TEXT,
   "prompt" TEXT,
   "system" TEXT,
   "prompt_json" TEXT,
   "options_json" TEXT,
   "response" TEXT,
   "response_json" TEXT,
   "conversation_id" TEXT REFERENCES "conversations"("id"),
   "duration_ms" INTEGER,
   "datetime_utc" TEXT,
   "input_tokens" INTEGER,
   "output_tokens" INTEGER,
   "token_details" TEXT,
   "schema_id" TEXT REFERENCES "schemas"("id")
, "resolved_model" TEXT, "reasoning" TEXT);
CREATE TABLE "threads" (
   "id" TEXT PRIMARY KEY,
   "name" TEXT,
   "tip_message_hash" TEXT REFERENCES "messages"("hash"),
   "forked_from" TEXT REFERENCES "threads"("id"),
   "datetime_utc" TEXT
);
INSERT INTO threads VALUES ('01m8a28ankrwe30h1btrn3732j','Another one.','b2:4e143294469cbb785c2b885814168c6a',NULL,'2026-11-25 19:17:24.640095+00:00');
INSERT INTO threads VALUES ('01m8a28dt7kh2qhkcejc7mqt40','What is 2+2?','b2:be24b334f7b384f1704beee006b5ff34',NULL,'2026-11-25 19:17:27.797047+00:00');
CREATE TABLE "turns" (
   "id" TEXT PRIMARY KEY,
   "thread_id" TEXT REFERENCES "threads"("id"),
   "parent_message_hash" TEXT REFERENCES "messages"("hash"),
   "tip_message_hash" TEXT REFERENCES "messages"("hash"),
   "model" TEXT,
   "resolved_model" TEXT,
   "options_json" TEXT,
   "schema_id" TEXT REFERENCES "schemas"("id"),
   "input_tokens" INTEGER,
   "output_tokens" INTEGER,
   "token_details" TEXT,
   "duration_ms" INTEGER,
   "datetime_utc" TEXT
, "response_json" TEXT);
INSERT INTO turns VALUES ('01m8a28annfgha9f05wd6gkma7','01m8a28ankrwe30h1btrn3732j','b2:3d886fbf58ebf30861bec0803168cc1a','b2:4e143294469cbb785c2b885814168c6a','plain',NULL,NULL,NULL,31,13,'{"completion_tokens_details": {"reasoning_tokens": 3}, "prompt_tokens_details": {"cached_tokens": 7}}',356,'2026-11-25T19:17:24.277450+00:00','{"content": "LOOPBACK-OK turns=1 chars=12", "finish_reason": "stop", "usage": {"completion_tokens": 13, "prompt_tokens": 31, "total_tokens": 44, "completion_tokens_details": {"reasoning_tokens": 3}, "prompt_tokens_details": {"cached_tokens": 7}}, "id": "chatcmpl-40c700000001", "object": "chat.completion.chunk", "model": "m1", "created": 1}');
INSERT INTO turns VALUES ('01m8a28dt939m80r37kbm1nyrx','01m8a28dt7kh2qhkcejc7mqt40','b2:736ec669376e2a9e82136f4617cd091e','b2:077b04bde271eeb2342f5fa2dfbf5fa0','loop',NULL,NULL,NULL,31,13,'{"completion_tokens_details": {"reasoning_tokens": 3}, "prompt_tokens_details": {"cached_tokens": 7}}',165,'2026-11-25T19:17:27.497825+00:00','{"id": "chatcmpl-40c700000002", "choices": [{"finish_reason": "tool_calls", "index": 0, "message": {"role": "assistant", "tool_calls": [{"id": "call_40c700000003", "function": {"arguments": "{\"command\": \"echo hi-from-tool\", \"description\": \"say hi\"}", "name": "bash"}, "type": "function"}]}}], "created": 1, "model": "m1", "object": "chat.completion", "usage": {"completion_tokens": 13, "prompt_tokens": 31, "total_tokens": 44, "completion_tokens_details": {"reasoning_tokens": 3}, "prompt_tokens_details": {"cached_tokens": 7}}}');
INSERT INTO turns VALUES ('01m8a28dzft7yf0tb980ewhy92','01m8a28dt7kh2qhkcejc7mqt40','b2:dae9eb6ceee207c5eb8efa5abd6ee03d','b2:b2860d0b5d358541380a874949fd14f7','loop',NULL,NULL,NULL,31,13,'{"completion_tokens_details": {"reasoning_tokens": 3}, "prompt_tokens_details": {"cached_tokens": 7}}',132,'2026-11-25T19:17:27.663360+00:00','{"id": "chatcmpl-40c700000004", "choices": [{"finish_reason": "stop", "index": 0, "message": {"content": "LOOPBACK-OK turns=4 chars=33", "role": "assistant"}}], "created": 1, "model": "m1", "object": "chat.completion", "usage": {"completion_tokens": 13, "prompt_tokens": 31, "total_tokens": 44, "completion_tokens_details": {"reasoning_tokens": 3}, "prompt_tokens_details": {"cached_tokens": 7}}}');
INSERT INTO turns VALUES ('01m8a28hk4sc6g6jknkcfkr2r1','01m8a28dt7kh2qhkcejc7mqt40','b2:f5aa5836eb5e6f879155ec7340c76c18','b2:be24b334f7b384f1704beee006b5ff34','plain',NULL,NULL,NULL,31,13,'{"completion_tokens_details": {"reasoning_tokens": 3}, "prompt_tokens_details": {"cached_tokens": 7}}',232,'2026-11-25T19:17:31.364575+00:00','{"content": "LOOPBACK-OK turns=6 chars=69", "finish_reason": "stop", "usage": {"completion_tokens": 13, "prompt_tokens": 31, "total_tokens": 44, "completion_tokens_details": {"reasoning_tokens": 3}, "prompt_tokens_details": {"cached_tokens": 7}}, "id": "chatcmpl-40c700000005", "object": "chat.completion.chunk", "model": "m1", "created": 1}');
CREATE TABLE "messages" (
   "hash" TEXT PRIMARY KEY,
   "parent_hash" TEXT REFERENCES "messages"("hash"),
   "role" TEXT,
   "provider_metadata" TEXT
);
INSERT INTO messages VALUES ('b2:3d886fbf58ebf30861bec0803168cc1a',NULL,'user',NULL);
INSERT INTO messages VALUES ('b2:4e143294469cbb785c2b885814168c6a','b2:3d886fbf58ebf30861bec0803168cc1a','assistant',NULL);
INSERT INTO messages VALUES ('b2:074dea0bd0259e0d5dca16426a45e4f5',NULL,'system',NULL);
INSERT INTO messages VALUES ('b2:736ec669376e2a9e82136f4617cd091e','b2:074dea0bd0259e0d5dca16426a45e4f5','user',NULL);
INSERT INTO messages VALUES ('b2:077b04bde271eeb2342f5fa2dfbf5fa0','b2:736ec669376e2a9e82136f4617cd091e','assistant',NULL);
INSERT INTO messages VALUES ('b2:dae9eb6ceee207c5eb8efa5abd6ee03d','b2:077b04bde271eeb2342f5fa2dfbf5fa0','tool',NULL);
INSERT INTO messages VALUES ('b2:b2860d0b5d358541380a874949fd14f7','b2:dae9eb6ceee207c5eb8efa5abd6ee03d','assistant',NULL);
INSERT INTO messages VALUES ('b2:f5aa5836eb5e6f879155ec7340c76c18','b2:b2860d0b5d358541380a874949fd14f7','user',NULL);
INSERT INTO messages VALUES ('b2:be24b334f7b384f1704beee006b5ff34','b2:f5aa5836eb5e6f879155ec7340c76c18','assistant',NULL);
CREATE TABLE "parts" (
   "id" INTEGER PRIMARY KEY,
   "message_hash" TEXT REFERENCES "messages"("hash"),
   "position" INTEGER,
   "type" TEXT,
   "tool_name" TEXT,
   "text" TEXT,
   "payload" TEXT
);
INSERT INTO parts VALUES (1,'b2:3d886fbf58ebf30861bec0803168cc1a',0,'text',NULL,'Another one.',NULL);
INSERT INTO parts VALUES (2,'b2:4e143294469cbb785c2b885814168c6a',0,'reasoning',NULL,'','{"redacted": true}');
INSERT INTO parts VALUES (3,'b2:4e143294469cbb785c2b885814168c6a',1,'text',NULL,'LOOPBACK-OK turns=1 chars=12',NULL);
INSERT INTO parts VALUES (4,'b2:074dea0bd0259e0d5dca16426a45e4f5',0,'text',NULL,'Be brief.',NULL);
INSERT INTO parts VALUES (5,'b2:736ec669376e2a9e82136f4617cd091e',0,'text',NULL,'What is 2+2?',NULL);
INSERT INTO parts VALUES (6,'b2:736ec669376e2a9e82136f4617cd091e',1,'attachment',NULL,NULL,'{"attachment": {"id": "57c5b0ba802ba3aa9c4ebd11a8ef32d173abc6dd5b3deabb7cd540b66e14edc5"}}');
INSERT INTO parts VALUES (7,'b2:077b04bde271eeb2342f5fa2dfbf5fa0',0,'reasoning',NULL,'','{"redacted": true}');
INSERT INTO parts VALUES (8,'b2:077b04bde271eeb2342f5fa2dfbf5fa0',1,'tool_call','bash',NULL,'{"name": "bash", "arguments": {"command": "echo hi-from-tool", "description": "say hi"}, "tool_call_id": "call_40c700000003"}');
INSERT INTO parts VALUES (9,'b2:dae9eb6ceee207c5eb8efa5abd6ee03d',0,'tool_result','bash',NULL,'{"name": "bash", "output": "hi-from-tool", "tool_call_id": "call_40c700000003"}');
INSERT INTO parts VALUES (10,'b2:b2860d0b5d358541380a874949fd14f7',0,'reasoning',NULL,'','{"redacted": true}');
INSERT INTO parts VALUES (11,'b2:b2860d0b5d358541380a874949fd14f7',1,'text',NULL,'LOOPBACK-OK turns=4 chars=33',NULL);
INSERT INTO parts VALUES (12,'b2:f5aa5836eb5e6f879155ec7340c76c18',0,'text',NULL,'And 3+3?',NULL);
INSERT INTO parts VALUES (13,'b2:be24b334f7b384f1704beee006b5ff34',0,'reasoning',NULL,'','{"redacted": true}');
INSERT INTO parts VALUES (14,'b2:be24b334f7b384f1704beee006b5ff34',1,'text',NULL,'LOOPBACK-OK turns=6 chars=69',NULL);
CREATE TABLE "attachments" (
   "id" TEXT PRIMARY KEY,
   "type" TEXT,
   "path" TEXT,
   "url" TEXT,
   "content" BLOB
);
INSERT INTO attachments VALUES ('57c5b0ba802ba3aa9c4ebd11a8ef32d173abc6dd5b3deabb7cd540b66e14edc5','image/png',NULL,NULL,X'89504E470D0A1A0A0000000D4948445200000001000000010802000000907753DE0000000C4944415408D763F8CFC0000003010100C9FE92EF0000000049454E44AE426082');
CREATE TABLE "fragments" (
   "id" INTEGER PRIMARY KEY,
   "hash" TEXT,
   "content" TEXT,
   "datetime_utc" TEXT,
   "source" TEXT
);
CREATE TABLE "prompt_fragments" (
   "response_id" TEXT REFERENCES "responses"("id"),
   "fragment_id" INTEGER REFERENCES "fragments"("id"),
   "order" INTEGER,
   PRIMARY KEY ("response_id", "fragment_id", "order")
);
CREATE TABLE "system_fragments" (
   "response_id" TEXT REFERENCES "responses"("id"),
   "fragment_id" INTEGER REFERENCES "fragments"("id"),
   "order" INTEGER,
   PRIMARY KEY ("response_id", "fragment_id", "order")
);
CREATE TABLE "prompt_attachments" (
   "response_id" TEXT REFERENCES "responses"("id"),
   "attachment_id" TEXT REFERENCES "attachments"("id"),
   "order" INTEGER,
   PRIMARY KEY ("response_id", "attachment_id")
);
CREATE TABLE "tool_calls" (
   "id" INTEGER PRIMARY KEY,
   "response_id" TEXT REFERENCES "responses"("id"),
   "tool_id" INTEGER REFERENCES "tools"("id"),
   "name" TEXT,
   "arguments" TEXT,
   "tool_call_id" TEXT
);
CREATE TABLE "tool_results" (
   "id" INTEGER PRIMARY KEY,
   "response_id" TEXT REFERENCES "responses"("id"),
   "tool_id" INTEGER REFERENCES "tools"("id"),
   "name" TEXT,
   "output" TEXT,
   "tool_call_id" TEXT,
   "instance_id" INTEGER REFERENCES "tool_instances"("id")
, "exception" TEXT);
