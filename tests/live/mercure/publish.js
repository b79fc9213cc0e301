// Publishes an update, as its arguments say, and prints the id that it was answered.
const { Publisher } = require("mercure");

const [port, jwt, topics, data, options] = process.argv.slice(2);
const publisher = new Publisher({
  protocol: "http",
  host: "127.0.0.1",
  port: Number(port),
  path: "/mercure/",
  jwt,
});

publisher
  .publish(JSON.parse(topics), data, JSON.parse(options))
  .then(console.log)
  .catch((error) => {
    console.log(error.message);
    process.exit(1);
  });
