// A page with a chat, as a project with React would have it: the packages are the real ones.
import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport, lastAssistantMessageIsCompleteWithToolCalls } from "ai";
import { createElement, StrictMode } from "react";
import { createRoot } from "react-dom/client";

const transport = new DefaultChatTransport({
  api: "/chat",
  headers: () => ({ "X-CSRFToken": /csrftoken=(\w+)/.exec(document.cookie)[1] }),
});

function Chat({ id, resume }) {
  const chat = useChat({
    id,
    resume,
    transport,
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
    onToolCall: ({ toolCall }) => {
      if (toolCall.toolName === "add") {
        const { a, b } = toolCall.input;
        chat.addToolOutput({ tool: "add", toolCallId: toolCall.toolCallId, output: a + b });
      }
    },
  });
  window.chat = chat;
  return null;
}

/** Show a chat. An effect that runs twice, as in development, must not ask for anything twice. */
window.show = (id, resume) =>
  createRoot(document.createElement("div")).render(
    createElement(StrictMode, null, createElement(Chat, { id, resume })),
  );
