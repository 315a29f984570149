// OpenAI's client for Node; streams are read by its helper that puts the chunks together.
//
//     node ask_openai.js CASES      as cases.py has them
const { OpenAI } = require("openai");

async function ask({ url, key, model, seed, n, messages, prompt, tools, stream, body, headers }) {
  const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
  const asked = { model, seed, n, ...body };
  if (prompt !== undefined) {
    const text = await client.completions.create({ ...asked, prompt }, { headers });
    return { texts: text.choices.map((choice) => choice.text), guerdon: text.guerdon };
  }
  Object.assign(asked, { messages, tools });
  const textsOf = (reply) => reply.choices.map((choice) => choice.message.content);
  if (stream) {
    let pieces = 0;
    const run = client.chat.completions.stream(asked, { headers });
    run.on("content.delta", () => pieces++);
    return { texts: textsOf(await run.finalChatCompletion()), pieces };
  }
  const raw = await client.chat.completions.create(asked, { headers }).withResponse();
  const { guerdon, choices } = raw.data;
  const header = raw.response.headers.get("x-guerdon-score");
  return { texts: textsOf(raw.data), guerdon, header, score: choices[0].guerdon?.score };
}

(async () => {
  for (const each of JSON.parse(process.argv[2])) {
    const found = await ask(each).catch((error) => ({
      error: error.constructor.name,
      message: error.message,
    }));
    console.log(JSON.stringify(found));
  }
})();
